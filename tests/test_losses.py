"""Losses equal those of torch, torchvision and scikit-learn, in their values and gradients."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from resnet_builder.builder import load_experiment
from resnet_builder.data.interfaces import DatasetInfo
from resnet_builder.errors import SpecError
from resnet_builder.losses import LOSSES, Loss
from resnet_builder.parts import build_loss
from resnet_builder.testing import check_loss
from tests.test_no_dead_options import BASE
from tests.training.recipes import CLASS_COUNTS, CLASS_INFO, recipe

IMAGES = sum(CLASS_COUNTS.values())
COUNTS = torch.tensor([*CLASS_COUNTS.values()])
BALANCED = torch.from_numpy(
    compute_class_weight("balanced", classes=np.arange(4), y=np.arange(4).repeat(COUNTS.numpy()))
).float()
POSITIVE = (IMAGES - COUNTS) / COUNTS
LABELS = torch.randint(4, (32,), generator=torch.Generator().manual_seed(0))
ONE_HOT = functional.one_hot(LABELS, 4).float()
MIXED = 0.7 * ONE_HOT + 0.3 * ONE_HOT.roll(1, 0)
SEVERAL = torch.randint(2, (32, 4), generator=torch.Generator().manual_seed(1)).float()


def made(part: Any) -> Loss:
    return build_loss(recipe(loss=part), CLASS_INFO)


def logits(scale: float = 3.0) -> Tensor:
    drawn = torch.randn(32, 4, generator=torch.Generator().manual_seed(2))
    return (scale * drawn).requires_grad_()


def softmax_focal(logits: Tensor, labels: Tensor, gamma: float, weight: Tensor) -> Tensor:
    """Equation 5 of Lin et al. 2017, image by image."""
    p = logits.softmax(1)[torch.arange(len(labels)), labels]
    focal = -((1 - p) ** gamma) * p.log()
    return (weight[labels] * focal).sum() / weight[labels].sum()


def bce(logits: Tensor, targets: Tensor, pos_weight: Tensor | None = None) -> Tensor:
    return functional.binary_cross_entropy_with_logits(logits, targets, pos_weight=pos_weight)


CASES: dict[str, tuple[Any, Tensor, Callable[[Tensor], Tensor]]] = {
    "plain": ("cross_entropy", LABELS, lambda z: functional.cross_entropy(z, LABELS)),
    "a list of weights": (
        {"class_weights": [1, 2.5, 3, 0.5]},
        LABELS,
        lambda z: functional.cross_entropy(z, LABELS, torch.tensor([1, 2.5, 3, 0.5])),
    ),
    "named weights": (
        {"class_weights": {"dog": 4.0}},
        LABELS,
        lambda z: functional.cross_entropy(z, LABELS, torch.tensor([1.0, 1, 1, 4])),
    ),
    "balanced, smoothed": (
        {"class_weights": "balanced", "label_smoothing": 0.1},
        LABELS,
        lambda z: functional.cross_entropy(z, LABELS, BALANCED, label_smoothing=0.1),
    ),
    "balanced, mixed": (
        {"class_weights": "balanced"},
        MIXED,
        lambda z: functional.cross_entropy(z, MIXED, BALANCED),
    ),
    "focal": (
        {"type": "focal", "gamma": 2.0, "class_weights": "balanced"},
        LABELS,
        lambda z: softmax_focal(z, LABELS, 2.0, BALANCED),
    ),
    "focal, gamma below one": (
        {"type": "focal", "gamma": 0.5},
        LABELS,
        lambda z: softmax_focal(z, LABELS, 0.5, torch.ones(4)),
    ),
    "focal without gamma": (
        {"type": "focal", "gamma": 0, "class_weights": "balanced"},
        LABELS,
        lambda z: functional.cross_entropy(z, LABELS, BALANCED),
    ),
    "focal without gamma, mixed": (
        {"type": "focal", "gamma": 0, "class_weights": "balanced"},
        MIXED,
        lambda z: functional.cross_entropy(z, MIXED, BALANCED),
    ),
    "focal of two classes, which is torchvision's": (
        {"type": "focal", "gamma": 3.0},
        LABELS % 2,
        lambda z: sigmoid_focal_loss(
            z[:, 1] - z[:, 0], LABELS % 2 * 1.0, -1, 3.0, reduction="mean"
        ),
    ),
    "binary": ("binary_cross_entropy", LABELS, lambda z: bce(z, ONE_HOT)),
    "binary, mixed": ("binary_cross_entropy", MIXED, lambda z: bce(z, MIXED)),
    "binary, a threshold": (
        {"type": "binary_cross_entropy", "target_threshold": 0.2},
        MIXED,
        lambda z: bce(z, (MIXED > 0.2).float()),
    ),
    "binary, weights, several labels": (
        {"type": "binary_cross_entropy", "pos_weight": [1.0, 2, 3, 4]},
        SEVERAL,
        lambda z: bce(z, SEVERAL, torch.tensor([1.0, 2, 3, 4])),
    ),
    "binary, balanced, several labels": (
        {"type": "binary_cross_entropy", "pos_weight": "balanced"},
        SEVERAL,
        lambda z: bce(z, SEVERAL, POSITIVE),
    ),
    "sigmoid focal": (
        {"type": "sigmoid_focal"},
        LABELS,
        lambda z: sigmoid_focal_loss(z, ONE_HOT, reduction="mean"),
    ),
    "sigmoid focal, several labels": (
        {"type": "sigmoid_focal", "gamma": 1.5, "alpha": 0.6},
        SEVERAL,
        lambda z: sigmoid_focal_loss(z, SEVERAL, 0.6, 1.5, reduction="mean"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_loss_and_its_gradient_are_those_of_the_libraries(case: str) -> None:
    part, targets, reference = CASES[case]
    ours, theirs = logits(), logits()
    if case.startswith("focal of two classes"):
        ours, theirs = (
            ours.detach()[:, :2].requires_grad_(),
            theirs.detach()[:, :2].requires_grad_(),
        )
        loss = build_loss(recipe(loss=part), DatasetInfo(2))
    else:
        loss = made(part)
    found, expected = loss(ours, targets), reference(theirs)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    torch.autograd.backward([found, expected])
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES.names())
def test_gradients_are_finite_where_the_network_is_certain_and_exact_elsewhere(name: str) -> None:
    gammas = [0.0, 0.5, 1.0, 2.0] if name == "focal" else [1.0, 2.0] if "focal" in name else [None]
    for gamma in gammas:
        loss = made({"type": name} | ({} if gamma is None else {"gamma": gamma}))
        for targets in (LABELS, MIXED):
            certain = logits(1e3)
            loss(certain, targets).backward()
            assert certain.grad is not None
            assert certain.grad.isfinite().all()
            few = (logits(0.5).double()[:3].detach().requires_grad_(), targets[:3])
            torch.autograd.gradcheck(loss.double(), (few[0], few[1]))


@pytest.mark.parametrize("name", LOSSES.names())
def test_registered_losses_keep_the_contract(name: str) -> None:
    options = LOSSES.options(name).model_fields
    weights = {key: (1.0, 2.0, 3.0, 4.0) for key in options if key.endswith("weights")}
    check_loss(LOSSES.get(name))
    check_loss(LOSSES.get(name), **weights)


def test_losses_that_break_the_contract_are_told_how() -> None:
    class Sum(Loss):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            return functional.cross_entropy(logits, targets, reduction="sum")

    class Each(Loss):
        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            return functional.cross_entropy(logits, targets, reduction="none")

    with pytest.raises(AssertionError, match="labels: parts of a batch have another mean"):
        check_loss(Sum)
    with pytest.raises(AssertionError, match=r"labels: the loss has the shape \(6,\), not \(\)"):
        check_loss(Each)


OTHER_VALUES: dict[tuple[str, str], Any] = {
    ("cross_entropy", "label_smoothing"): 0.2,
    ("cross_entropy", "class_weights"): "balanced",
    ("focal", "gamma"): 1.0,
    ("focal", "class_weights"): "balanced",
    ("binary_cross_entropy", "pos_weight"): "balanced",
    ("binary_cross_entropy", "target_threshold"): 0.5,
    ("sigmoid_focal", "gamma"): 1.0,
    ("sigmoid_focal", "alpha"): 0.5,
}


def test_every_option_of_every_loss_changes_it() -> None:
    known = {(name, key) for name in LOSSES.names() for key in LOSSES.options(name).model_fields}
    assert known == OTHER_VALUES.keys()
    for (name, key), value in OTHER_VALUES.items():
        targets = MIXED if key == "target_threshold" else LABELS
        before, after = made(name), made({"type": name, key: value})
        assert before(logits(), targets) != after(logits(), targets), (name, key)


REFUSED: dict[str, tuple[str, str]] = {
    "{class_weights: [1, 2]}": ("train.loss.class_weights", "2 weights for 4 classes"),
    "{class_weights: blanced}": ("train.loss.class_weights", "balanced"),
    "{class_weights: [1, 2, 0, 1]}": ("train.loss.class_weights[2]", "1e-06 to 1000000"),
    "{class_weights: {class_0: 2.0, class0: 3.0}}": (
        "train.loss.class_weights",
        "the data has no class 'class0'; did you mean 'class_0'",
    ),
    "{type: focal, gamma: -1}": ("train.loss.gamma", "0 to 10"),
    "{type: focal, alpha: 0.5}": ("train.loss.alpha", "no such option"),
    "focl": ("train.loss", "did you mean: focal"),
    "{type: binary_cross_entropy, target_threshold: 1}": (
        "train.loss.target_threshold",
        "less than 1",
    ),
}


@pytest.mark.parametrize("loss", REFUSED)
def test_loss_that_does_not_fit_is_refused_at_its_place(loss: str) -> None:
    place, text = REFUSED[loss]
    with pytest.raises(SpecError) as caught:
        load_experiment(BASE, overrides=[f"train.loss={loss}"])
    [problem] = caught.value.errors
    assert problem.path == place
    assert text in str(caught.value)


def test_loss_of_a_plugin_is_a_part_like_all_others() -> None:
    class Squared(Loss):
        """Mean squared error of the probabilities (Brier 1950)."""

        def __init__(self, *, factor: float = 1.0) -> None:
            super().__init__()
            self._factor = factor

        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            wanted = functional.one_hot(targets, logits.shape[1]).float()
            return self._factor * nn.functional.mse_loss(logits.softmax(1), wanted)

    class Broken(Loss):
        """No loss."""

        def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
            raise KeyError("gone")

    with LOSSES.temporary("brier", Squared), LOSSES.temporary("broken", Broken):
        experiment = load_experiment(BASE, overrides=["train.loss=brier"])
        assert experiment.train.loss.options == {"factor": 1.0}
        with pytest.raises(SpecError, match=r"'broken' fails in .*KeyError: 'gone'"):
            load_experiment(BASE, overrides=["train.loss=broken"])

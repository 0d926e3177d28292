"""Frozen sections keep their bytes; activation checkpointing gives the same bits in less memory."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torchvision.ops import StochasticDepth

from resnet_builder.builder import build
from resnet_builder.data.interfaces import Batch
from resnet_builder.errors import Stopped, UsageError
from resnet_builder.model import ResNet, sections
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.training.ema import Ema
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.finetune import (
    checkpoint_activations,
    freeze,
    frozen_tensors,
    has_unused_parameters,
)
from resnet_builder.training.optim import optimizer_state, restore_optimizer
from resnet_builder.training.schedule import Plan
from resnet_builder.training.step import TrainStep
from tests.networks import cifar_spec, random_images
from tests.training.recipes import CLASSES, batch, images, recipe
from tests.training.runs import after, experiment, outcome, train
from tests.training.test_step import OPTIMIZERS, SCHEDULES, STEPS, make_step, reference_rate

SGD = {"type": "sgd", "lr": 0.1, "weight_decay": 1e-2, "nesterov": True}
RATE = 0.1
ADAMW = {"type": "adamw", "lr": 0.01, "eps": 1e-3, "weight_decay": 0.1}


def network(seed: int = 0, **model: Any) -> ResNet:
    """Build a network of three stages, with statistics that a training has moved."""
    built = build(cifar_spec(widths=(4, 6, 8), classes=CLASSES, **model), seed=seed)
    built.train()
    with torch.no_grad():
        built(images(8, seed=9))
    return built


def train_step(model: nn.Module, **changes: Any) -> TrainStep:
    return make_step(model, recipe(**changes))


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def changed(model: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """Return the names of the tensors whose bytes differ from those before."""
    return {
        name
        for name, tensor in model.state_dict().items()
        if tensor.numpy().tobytes() != before[name].numpy().tobytes()
    }


def test_sections_are_stem_stages_and_head() -> None:
    assert sections(network()) == {
        "stem": ("conv1", "bn1", "relu"),
        "layer1": ("layer1",),
        "layer2": ("layer2",),
        "layer3": ("layer3",),
        "head": ("avgpool", "flatten", "fc"),
    }


@pytest.mark.parametrize(
    ("frozen", "optimizer"),
    [
        (("stem", "layer1", "layer2"), SGD),
        (("layer2",), ADAMW),
        (("head",), SGD),
        (("stem", "head", "layer3"), ADAMW),
    ],
)
def test_frozen_tensors_keep_their_bytes_and_all_others_change(
    frozen: tuple[str, ...], optimizer: dict[str, Any]
) -> None:
    model = network()
    before = state(model)
    learn = train_step(model, optimizer=optimizer, freeze=frozen, clip_norm=1.0)
    for step in range(3):
        learn(batch(step), step=step, lr=RATE)

    layers = {layer for name in frozen for layer in sections(model)[name]}
    expected = {name for name in before if name.split(".")[0] not in layers}
    assert changed(model, before) == expected
    assert frozen_tensors(model, frozen) == before.keys() - expected


def test_frozen_layers_stay_in_evaluation_mode_after_an_evaluation() -> None:
    model = network()
    train_step(model, freeze=["stem", "layer1"])
    modes = {name: module.training for name, module in model.named_modules()}
    assert modes["layer2"]
    assert not any(mode for name, mode in modes.items() if name.startswith(("bn1", "layer1")))

    evaluate(model, [(images(4), torch.zeros(4, dtype=torch.int64))])

    assert {name: module.training for name, module in model.named_modules()} == modes


def test_dropout_and_drop_path_are_off_where_frozen() -> None:
    model = network(block={"type": "basic", "dropout": 0.5}, drop_path=0.5)
    assert any(isinstance(module, StochasticDepth) for module in model.modules())
    train_step(model, freeze=["stem", "layer1", "layer2", "layer3"])
    once, again = (model[:-1](images(4)) for _ in range(2))
    assert torch.equal(once, again)


def test_no_backward_pass_goes_through_leading_frozen_layers() -> None:
    model = network()
    learn = train_step(model, freeze=["stem", "layer1"])
    needed: dict[str, bool] = {}
    for name, layer in model.named_children():
        layer.register_forward_hook(
            lambda _module, _inputs, output, name=name: needed.update({name: output.requires_grad})
        )
    learn(batch(0), step=0, lr=RATE)
    assert [name for name, needs in needed.items() if not needs] == [
        *("conv1", "bn1", "relu", "layer1"),
    ]


def test_norm_of_the_gradient_is_of_what_is_trained() -> None:
    """A clipped step is as long as the rate, whatever the frozen layers' gradients would be."""
    model = network()
    plain = {"type": "sgd", "lr": 0.5, "momentum": 0.0}
    learn = train_step(model, optimizer=plain, freeze=["stem", "layer1", "layer2"], clip_norm=1e-3)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learn(batch(0), step=0, lr=0.5)
    moved = [(p.detach() - before[name]).flatten() for name, p in model.named_parameters()]
    assert torch.cat(moved).norm().item() == pytest.approx(0.5 * 1e-3, rel=1e-3)


def test_average_of_frozen_tensors_is_an_exact_copy() -> None:
    model = network()
    with torch.no_grad():
        model.get_parameter("layer1.0.bn1.bias").fill_(-0.0)  # a sum with 0.0 would lose the sign
    before = state(model)
    frozen = ["stem", "layer1"]
    learn = train_step(model, freeze=frozen)
    given = recipe(ema={"decay": 0.9})
    assert given.ema is not None
    average = Ema(model, given.ema, frozen=frozen_tensors(model, frozen))
    for step in range(3):
        learn(batch(step), step=step, lr=RATE)
        average.update(step + 1)
    layers = ("conv1.", "bn1.", "layer1.")
    assert changed(average.model, before) == {k for k in before if not k.startswith(layers)}


def test_unknown_section_or_freezing_everything_is_refused() -> None:
    with pytest.raises(UsageError, match="no 'layer4'; it has stem, layer1, layer2, layer3, head"):
        freeze(network(), ["layer4"])
    model = network()
    with pytest.raises(UsageError, match="nothing to train"):
        freeze(model, sections(model))


CASES = [
    *((optimizer, "cosine", ()) for optimizer in OPTIMIZERS),
    *((optimizer, "cosine", ("stem", "layer1")) for optimizer in OPTIMIZERS),
    *(("momentum", schedule, ("stem", "layer1")) for schedule in SCHEDULES if schedule != "cosine"),
]


@pytest.mark.parametrize(("optimizer", "schedule", "frozen"), CASES)
def test_twenty_steps_equal_a_plain_loop(
    optimizer: str, schedule: str, frozen: tuple[str, ...]
) -> None:
    given = recipe(
        optimizer={**OPTIMIZERS[optimizer], "weight_decay": 0.01},
        schedule=SCHEDULES[schedule],
        no_weight_decay=("norm", "bias"),
        clip_norm=0.5,
        ema={"decay": 0.8},
        freeze=frozen,
        head_lr_multiplier=10.0,
    )
    batches = [batch(step) for step in range(STEPS)]
    expected = reference(network(), given, batches)

    model = network()
    learn, rate = make_step(model, given), Plan(given, 5).lr
    assert given.ema is not None
    average = Ema(model, given.ema, frozen=frozen_tensors(model, frozen))
    for step, one in enumerate(batches):
        learn(one, step=step, lr=rate(step))
        average.update(step + 1)

    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(average.model.state_dict()[name], tensor, rtol=0, atol=1e-6)


def reference(model: nn.Module, given: TrainSpec, batches: list[Batch]) -> nn.Module:
    """Fine-tune in PyTorch's plainest terms, and return the averaged network.

    Stem and first stage are frozen if anything is; each parameter has a group of its own.
    """
    frozen = ("conv1.", "bn1.", "layer1.") if given.freeze else ()
    trained = {n: p for n, p in model.named_parameters() if not n.startswith(frozen)}
    groups = [{"params": [p], "weight_decay": 0.01 if p.ndim > 1 else 0} for p in trained.values()]
    kind: Any = torch.optim.SGD if given.optimizer.type == "sgd" else torch.optim.AdamW
    plain = kind(groups, **given.optimizer.model_dump(exclude={"type"}), foreach=False)
    average = copy.deepcopy(model)
    for step, one in enumerate(batches):
        for name, group in zip(trained, plain.param_groups, strict=True):
            group["lr"] = reference_rate(given, step) * (10 if name.startswith("fc.") else 1)
        for name, layer in model.named_children():
            layer.train(not f"{name}.".startswith(frozen))
        plain.zero_grad()
        nn.functional.cross_entropy(model(one.images), one.targets).backward()
        nn.utils.clip_grad_norm_(trained.values(), 0.5)
        plain.step()
        for old, new in zip(
            average.state_dict().values(), model.state_dict().values(), strict=True
        ):
            old.copy_(0.8 * old + 0.2 * new if new.is_floating_point() else new)
    return average


@pytest.mark.parametrize("exempt", [[], ["norm", "bias"]])
def test_rate_of_the_head_is_a_multiple_of_the_scheduled_one(exempt: list[str]) -> None:
    model = network()
    given = recipe(optimizer=SGD, schedule="linear", head_lr_multiplier=4.0, no_weight_decay=exempt)
    schedule = Plan(given, 5).lr
    learn = make_step(model, given)
    names = {parameter: name for name, parameter in model.named_parameters()}
    for step in (0, 7):
        learn(batch(step), step=step, lr=schedule(step))
        rates = {
            names[parameter]: group["lr"]
            for group in learn.optimizer.param_groups
            for parameter in group["params"]
        }
        assert rates.keys() == set(names.values())
        for name, rate in rates.items():
            assert rate == schedule(step) * (4 if name.startswith("fc.") else 1)


def test_state_of_what_is_frozen_later_is_dropped() -> None:
    model = network()
    learn = train_step(model, optimizer=ADAMW)
    learn(batch(0), step=0, lr=RATE)
    saved = optimizer_state(learn.optimizer, model)
    later = train_step(model, optimizer=ADAMW, freeze=["stem", "layer1"])
    restore_optimizer(later.optimizer, model, saved)
    kept = optimizer_state(later.optimizer, model)
    assert kept.keys() == {
        key for key in saved if not key.startswith(("conv1.", "bn1.", "layer1."))
    }


def test_stopped_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """A frozen stem and a head with a rate of its own; all else is in test_resume.py."""
    spec = experiment(
        optimizer=SGD, ema={"decay": 0.9}, clip_norm=1.0, freeze=["stem"], head_lr_multiplier=3.0
    )
    train(tmp_path / "whole", spec, model=build(spec, seed=3))
    with pytest.raises(Stopped):
        train(tmp_path / "resumed", spec, model=build(spec, seed=3), should_stop=after(6))
    train(tmp_path / "resumed", spec, model=build(spec, seed=3))
    assert outcome(tmp_path / "resumed") == outcome(tmp_path / "whole")


def test_metrics_give_the_rate_of_the_body(tmp_path: Path) -> None:
    rates = []
    for name, multiplier in (("one", 1.0), ("five", 5.0)):
        spec = experiment(schedule="cosine", head_lr_multiplier=multiplier)
        train(tmp_path / name, spec, model=build(spec, seed=3))
        rows = MetricsLog(RunDirectory(tmp_path / name)).read()
        rates.append([row.lr for row in rows if row.event == "train"])
    assert rates[0] == rates[1]
    assert None not in rates[0]


NETWORKS: dict[str, dict[str, Any]] = {
    "basic": {"block": {"type": "basic", "dropout": 0.3}, "drop_path": 0.3, "attention": "eca"},
    "bottleneck": {"block": "bottleneck", "shortcut": "projection", "norm": "instance_norm"},
    "preact": {"block": "preact_basic", "stem": {"type": "conv3x3", "channels": 4, "bare": True}},
}
RECIPES: dict[str, dict[str, Any]] = {
    "plain": {},
    "all": {
        "ema": {"decay": 0.9},
        "clip_norm": 1.0,
        "accumulate": 2,
        "freeze": ["stem", "layer1"],
        "loss": {"type": "cross_entropy", "label_smoothing": 0.1},
    },
}


def two_stages(**model: Any) -> ResNet:
    return build(cifar_spec(2, widths=(4, 6), classes=CLASSES, **model), seed=0)


def kept_bytes(model: nn.Module) -> int:
    """Count what a forward pass keeps of activations, for 4 images of 16 x 16."""
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(random_images(4, 3, 16, 16))
    assert output.requires_grad
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize(
    ("network", "recipe", "precision"),
    [
        ("basic", "plain", "bf16"),
        ("basic", "all", "fp32"),
        ("bottleneck", "all", "bf16"),
        ("preact", "plain", "fp32"),
    ],
)
def test_checkpointed_run_has_the_same_bits(
    network: str, recipe: str, precision: str, tmp_path: Path
) -> None:
    """Weights, average, running statistics and their counters, momentum, metrics."""
    for name, stages in (("kept", []), ("again", "all")):
        spec = experiment(
            epochs=2,
            activation_checkpointing=stages,
            run={"precision": precision},
            **RECIPES[recipe],
        )
        train(tmp_path / name, spec, model=two_stages(**NETWORKS[network]))
    kept, again = outcome(tmp_path / "kept"), outcome(tmp_path / "again")
    assert kept["checkpoint"] == again["checkpoint"]
    assert kept["rows"] == again["rows"]


def test_run_may_be_resumed_with_other_stages_checkpointed(tmp_path: Path) -> None:
    train(tmp_path / "kept", experiment(), model=two_stages())
    with pytest.raises(Stopped):
        train(tmp_path / "again", experiment(), model=two_stages(), should_stop=after(5))
    train(tmp_path / "again", experiment(activation_checkpointing=["layer2"]), model=two_stages())
    kept, again = outcome(tmp_path / "kept"), outcome(tmp_path / "again")
    assert kept["checkpoint"] == again["checkpoint"]


def test_activations_inside_checkpointed_blocks_are_not_kept() -> None:
    """Of a block of a stage, one tensor is left of five: its input."""
    model = two_stages().train()
    pixels = 4 * 4 * 16 * 16  # floats of 4 bytes, 4 images
    everything = kept_bytes(model)
    first, second = (
        kept_bytes(checkpoint_activations(model, [name])) for name in ("layer1", "layer2")
    )
    both = kept_bytes(checkpoint_activations(model, "all"))
    inside = 3 * 4 * pixels  # conv1, its activation, conv2; 4 channels
    statistics = 2 * 2 * 4 * 4  # mean and deviation of two norms
    assert everything - first == 2 * (inside + statistics)
    assert second < everything
    assert everything - both == (everything - first) + (everything - second)


def test_tensors_are_shared_with_the_network() -> None:
    model = two_stages()
    assert checkpoint_activations(model, ()) is model
    wrapped = checkpoint_activations(model, ["layer2"])
    assert list(wrapped.parameters()) == list(model.parameters())
    assert copy.deepcopy(wrapped)(random_images(2, 3, 8, 8)).shape == (2, CLASSES)


def test_buffers_are_put_back_where_computing_again_fails() -> None:
    model = two_stages().train()
    own = dict(model.named_buffers())
    output = checkpoint_activations(model, ["layer1"])(random_images(2, 3, 8, 8))
    model.get_submodule("layer1.0.bn1").register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        output.sum().backward()
    assert all(buffer is own[name] for name, buffer in model.named_buffers())


@pytest.mark.ci
def test_compiled_network_checkpoints_too() -> None:
    """It counts no batch twice in its statistics either."""
    found = []
    for is_compiled in (False, True):
        model = build(cifar_spec(1, widths=(4,), classes=CLASSES), seed=0).train()
        forward = checkpoint_activations(model, "all")
        compute = torch.compile(forward, dynamic=False) if is_compiled else forward
        compute(random_images(4, 3, 8, 8)).sum().backward()
        gradients = {f"{name}.grad": p.grad for name, p in model.named_parameters()}
        found.append({**gradients, **dict(model.named_buffers())})
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-4)


def test_parameters_that_the_network_does_not_use_are_found() -> None:
    class Idle(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x)

    used = two_stages()
    assert not has_unused_parameters(used, (3, 8, 8))
    idle = Idle(used, nn.Linear(2, 2))
    assert has_unused_parameters(idle, (3, 8, 8))
    idle[1].requires_grad_(False)
    assert not has_unused_parameters(idle, (3, 8, 8))

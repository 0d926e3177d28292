"""Training step: twenty of them equal a plain PyTorch loop, which is written here again."""

import copy
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from resnet_builder.builder import build
from resnet_builder.data.interfaces import Batch
from resnet_builder.spec.recipe import TrainSpec
from resnet_builder.training.ema import Ema
from resnet_builder.training.finetune import frozen_tensors
from resnet_builder.training.schedule import Plan
from resnet_builder.training.step import TrainStep
from tests.networks import cifar_spec
from tests.training.recipes import (
    CLASS_COUNTS,
    CLASSES,
    batch,
    loss_of,
    recipe,
    runtime,
    small_net,
    weight,
)

STEPS = 20

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"type": "sgd", "lr": 0.1, "momentum": 0.0, "weight_decay": 1e-2},
    "momentum": {"type": "sgd", "lr": 0.1, "weight_decay": 1e-2},
    "nesterov": {"type": "sgd", "lr": 0.1, "nesterov": True},
    # Not Adam's own eps of 1e-8: it divides a gradient by its size, so one that is no more than
    # rounding error moves a weight as far as any other, and two ways of summing up the same batch
    # end up to 4e-4 apart. With 1e-3 they stay within 2e-7.
    "adamw": {
        "type": "adamw",
        "lr": 0.01,
        "betas": (0.8, 0.95),
        "eps": 1e-3,
        "weight_decay": 0.1,
    },
    "adam": {"type": "adam", "lr": 0.01, "eps": 1e-3, "weight_decay": 0.1},
}
TORCH: dict[str, Any] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
}
SCHEDULES: dict[str, dict[str, Any]] = {
    "constant": {"type": "constant"},
    "multistep": {"type": "multistep", "milestones": [6, 12]},
    "cosine": {"type": "cosine"},
    "linear": {"type": "linear", "end": 0.001},
    "one_cycle": {"type": "one_cycle"},
}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "warm-up": {"warmup": {"steps": 5, "start": 0.001}},
    "EMA": {"ema": {"decay": 0.8, "every": 3}},
    "clipping": {"clip_norm": 0.5},
    "smoothing": {"loss": {"label_smoothing": 0.1}},
    "accumulation": {"accumulate": 4},
    "weights": {"loss": {"class_weights": "balanced", "label_smoothing": 0.1}, "accumulate": 4},
    "no decay of norms": {"no_weight_decay": ["norm", "bias"]},
    "mixed": {},
    "fine-tuning": {
        "freeze": ["stem", "layer1"],
        "head_lr_multiplier": 10.0,
        "no_weight_decay": ["norm", "bias"],
        "clip_norm": 0.5,
        "ema": {"decay": 0.8},
    },
}
FROZEN = ("conv1.", "bn1.", "layer1.")


def make_step(model: nn.Module, train: TrainSpec, **changes: Any) -> TrainStep:
    return TrainStep(model, loss_of(train), train, runtime(**changes))


def network(variant: str) -> nn.Module:
    """Make a network: with sections where they matter, and without norms where these would."""
    if variant == "fine-tuning":
        return build(cifar_spec(widths=(4, 6, 8), classes=CLASSES), seed=0)
    # Micro-batches have batch statistics of their own, which are not those of the whole batch.
    return small_net(norm=variant not in {"accumulation", "weights"})


def ours(model: nn.Module, train: TrainSpec, batches: list[Batch]) -> nn.Module:
    """Train, and return the network to evaluate."""
    train_step, schedule = make_step(model, train), Plan(train, 5).lr
    frozen = frozen_tensors(model, train.freeze)
    ema = None if train.ema is None else Ema(model, train.ema, frozen=frozen)
    for step, one in enumerate(batches):
        train_step(one, step=step, lr=schedule(step))
        if ema is not None:
            ema.update(step + 1)
    return model if ema is None else ema.model


def reference(model: nn.Module, train: TrainSpec, batches: list[Batch]) -> nn.Module:
    """Train in PyTorch's plainest terms; each parameter has a group of its own."""
    frozen = FROZEN if train.freeze else ()
    trained = {n: p for n, p in model.named_parameters() if not n.startswith(frozen)}
    options = train.optimizer.model_dump(exclude={"type"})
    decayed = {n for n, p in trained.items() if p.ndim > 1 or not train.no_weight_decay}
    optimizer = TORCH[train.optimizer.type](
        [
            {"params": [p], "weight_decay": options["weight_decay"] if name in decayed else 0.0}
            for name, p in trained.items()
        ],
        **options,
        fused=False,
        foreach=False,
    )
    counts = torch.tensor([*CLASS_COUNTS.values()])
    is_weighted = "class_weights" in train.loss.options
    cross_entropy = nn.CrossEntropyLoss(
        counts.sum() / (CLASSES * counts) if is_weighted else None,
        label_smoothing=train.loss.options.get("label_smoothing", 0.0),
    )
    average = copy.deepcopy(model)
    for step, one in enumerate(batches):
        for name, group in zip(trained, optimizer.param_groups, strict=True):
            factor = train.head_lr_multiplier if name.startswith("fc.") else 1.0
            group["lr"] = reference_rate(train, step) * factor
        for name, layer in model.named_children():
            layer.train(not f"{name}.".startswith(frozen))
        optimizer.zero_grad()
        cross_entropy(model(one.images), one.targets).backward()
        if train.clip_norm is not None:
            nn.utils.clip_grad_norm_(trained.values(), train.clip_norm)
        optimizer.step()
        if train.ema is not None and (step + 1) % train.ema.every == 0:
            for old, new in zip(
                average.state_dict().values(), model.state_dict().values(), strict=True
            ):
                moved = train.ema.decay * old + (1 - train.ema.decay) * new
                old.copy_(moved if new.is_floating_point() else new)
    return model if train.ema is None else average


def reference_rate(train: TrainSpec, step: int) -> float:
    """Compute a rate of :data:`SCHEDULES` in the fewest words."""
    lr, warmup = train.optimizer.lr, getattr(train.schedule, "warmup", None)
    wait = 0 if warmup is None else 5
    if step < wait:
        return 0.001 + (lr - 0.001) * step / 5
    progress = (step - wait) / (STEPS - 1 - wait)
    top = 0.3 * STEPS - 1
    return {
        "constant": lr,
        "multistep": lr * (1.0 if step < 6 else 0.1 if step < 12 else 0.01),
        "cosine": lr * (1 + math.cos(math.pi * progress)) / 2,
        "linear": lr + (0.001 - lr) * progress,
        "one_cycle": half_cosine(lr / 25, lr, step / top)
        if step <= top
        else half_cosine(lr, lr / 25e4, (step - top) / (19 - top)),
    }[train.schedule.type]


def half_cosine(start: float, end: float, progress: float) -> float:
    return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def made(optimizer: str, schedule: str, variant: str) -> TrainSpec:
    changes = dict(VARIANTS[variant])
    warmup = {"warmup": changes.pop("warmup")} if "warmup" in changes else {}
    decay = {"weight_decay": 0.01} if "no_weight_decay" in changes else {}
    return recipe(
        steps=STEPS,
        optimizer={**OPTIMIZERS[optimizer], **decay},
        schedule={**SCHEDULES[schedule], **warmup},
        **changes,
    )


def cases() -> Iterator[Any]:
    """Yield all combinations; by default those run in which each variant meets each schedule."""
    for number, variant in enumerate(VARIANTS):
        for index, schedule in enumerate(SCHEDULES):
            for place, optimizer in enumerate(OPTIMIZERS):
                if (schedule, variant) == ("one_cycle", "warm-up"):
                    continue  # one-cycle has a warm-up of its own
                turn = (place - index - number) % len(OPTIMIZERS)
                marks = [] if turn == 0 else [pytest.mark.ci if turn == 1 else pytest.mark.slow]
                yield pytest.param(optimizer, schedule, variant, marks=marks)


@pytest.mark.parametrize(("optimizer", "schedule", "variant"), list(cases()))
def test_twenty_steps_equal_a_plain_loop(optimizer: str, schedule: str, variant: str) -> None:
    train = made(optimizer, schedule, variant)
    batches = [batch(step, mixed=variant == "mixed") for step in range(STEPS)]

    expected = reference(network(variant), train, batches).state_dict()
    found = ours(network(variant), train, batches).state_dict()

    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)


@pytest.mark.parametrize("variant", ["plain", "smoothing", "accumulation"])
def test_adamw_with_its_own_eps_is_a_plain_loop_but_for_rounding(variant: str) -> None:
    train = made("adamw", "constant", variant)
    own = train.model_copy(update={"optimizer": train.optimizer.model_copy(update={"eps": 1e-8})})
    batches = [batch(step) for step in range(STEPS)]

    expected = reference(network(variant), own, batches).state_dict()
    found = ours(network(variant), own, batches).state_dict()
    with_other_eps = ours(network(variant), train, batches).state_dict()

    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=2e-3)
    assert (with_other_eps["0.weight"] - expected["0.weight"]).abs().max() > 2e-2


def test_momentum_survives_a_change_of_the_rate() -> None:
    model = small_net()
    train_step, parameter = make_step(model, recipe()), weight(model, 0)
    for step in range(3):
        train_step(batch(step), step=step, lr=0.1)
    before = train_step.optimizer.state[parameter]["momentum_buffer"].clone()

    train_step(batch(3), step=3, lr=1e-10)

    assert parameter.grad is not None
    after = train_step.optimizer.state[parameter]["momentum_buffer"]
    torch.testing.assert_close(after, 0.9 * before + parameter.grad)
    assert train_step.optimizer.param_groups[0]["lr"] == 1e-10


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("first", [0, 2])
def test_bad_step_and_those_after_it_change_no_weight(
    fused: bool, optimizer: str, bad: float, first: int
) -> None:
    model = small_net()
    train_step = make_step(model, recipe(optimizer=OPTIMIZERS[optimizer]), fused=fused)
    for step in range(first):
        train_step(batch(step), step=step, lr=0.1)
    before = {name: p.clone() for name, p in model.named_parameters()}

    spoilt = batch(first)
    spoilt.images[3, 0, 0, 0] = bad
    rows = [train_step(one, step=first, lr=0.1) for one in (spoilt, batch(first + 1))]

    assert [row[2].item() for row in rows] == [1, 1]
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())


def test_gradient_without_a_finite_norm_is_bad() -> None:
    model = small_net()
    weight(model, 0).register_hook(lambda gradient: gradient * math.inf)
    before = weight(model, 0).detach().clone()

    loss, _, failed = make_step(model, recipe())(batch(0), step=0, lr=0.1).tolist()

    assert math.isfinite(loss)
    assert failed == 1
    assert torch.equal(weight(model, 0), before)


def test_step_returns_its_loss_and_correct_predictions() -> None:
    model = small_net()
    one = batch(0)
    with torch.no_grad():
        logits = copy.deepcopy(model)(one.images)
    expected = nn.functional.cross_entropy(logits, one.targets)
    num_correct = (logits.argmax(1) == one.targets).sum()

    row = make_step(model, recipe())(one, step=0, lr=0.1)

    torch.testing.assert_close(row, torch.stack((expected, num_correct, torch.tensor(0.0))))


@pytest.mark.parametrize("loss", ["cross_entropy", {"type": "focal", "class_weights": "balanced"}])
@pytest.mark.parametrize("mixed", [True, False])
def test_micro_batches_return_the_loss_of_the_whole_batch(loss: Any, mixed: bool) -> None:
    one = batch(0, mixed=mixed)
    whole, parts = (
        make_step(small_net(norm=False), recipe(accumulate=count, loss=loss))(one, step=0, lr=0.1)
        for count in (1, 4)
    )
    torch.testing.assert_close(parts, whole)


def test_bf16_is_the_networks_only_not_that_of_loss_weights_and_statistics() -> None:
    dtypes: list[torch.dtype] = []
    model = small_net()
    model.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))

    row = make_step(model, recipe(), precision="bf16")(batch(0), step=0, lr=0.1)

    assert dtypes == [torch.bfloat16]
    assert row.dtype == torch.float32
    assert {t.dtype for t in model.state_dict().values()} == {torch.float32, torch.int64}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def test_random_numbers_of_the_network_are_decided_by_the_step() -> None:
    drawn: list[torch.Tensor] = []
    model = small_net(nn.Dropout(0.5))
    model[6].register_forward_hook(lambda module, inputs, output: drawn.append(output == 0))
    train_step = make_step(model, recipe(accumulate=2))
    for step in (4, 5, 4):
        train_step(batch(0), step=step, lr=0.1)
    assert torch.equal(drawn[0], drawn[4])
    assert torch.equal(drawn[1], drawn[5])
    assert not torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])

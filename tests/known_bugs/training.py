"""Bugs in training: recipes, rates, steps and what they are measured by."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR

from resnet_builder.builder import build
from resnet_builder.data.interfaces import Batch
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.training.evaluation import evaluate
from resnet_builder.training.losses import make_loss
from resnet_builder.training.metrics import score
from resnet_builder.training.optim import build_optimizer
from resnet_builder.training.schedule import make_schedule
from resnet_builder.training.step import TrainStep
from resnet_builder.training.tally import Tally
from tests.known_bugs.bugs import bug, works
from tests.networks import cifar_spec
from tests.training.recipes import batch, images, labels, recipe, small_net, weight

WARMED_UP = {
    "schedule": {
        "type": "multistep",
        "milestones": [10],
        "warmup": {"type": "constant", "steps": 4, "lr": 0.01},
    }
}


def train_step(make: type[TrainStep], model: nn.Module, **how: Any) -> TrainStep:
    """Make what takes steps, with a milestone before the fourth."""
    bf16 = how.pop("bf16", False)
    schedule = {"type": "multistep", "milestones": [3], "gamma": 1e-9}
    train = recipe(schedule=schedule, **how)
    optimizer = build_optimizer(model, train.optimizer, no_weight_decay=(), fused=True)
    rate = make_schedule(train, 5)
    return make(model, model, make_loss(train.loss), optimizer, rate, seed=0, bf16=bf16)


class Forgetful(TrainStep):
    """Begin with a new optimizer whenever the rate changes."""

    def __call__(self, step: int, batch: Batch) -> Tensor:
        if step and self._schedule(step) != self._schedule(step - 1):
            self.optimizer.state.clear()
        return super().__call__(step, batch)


@bug(
    "kellerjordan-16",
    "the momentum is lost whenever the rate changes",
    ours=TrainStep,
    planted=Forgetful,
)
def check_momentum_survives_a_milestone(make: type[TrainStep]) -> None:
    model = small_net()
    learn, parameter = train_step(make, model), weight(model, 0)
    for step in range(3):
        learn(step, batch(step))
    before = learn.optimizer.state[parameter]["momentum_buffer"].clone()
    learn(3, batch(3))
    after = learn.optimizer.state[parameter]["momentum_buffer"]
    assert parameter.grad is not None
    assert torch.allclose(after, 0.9 * before + parameter.grad)


def load_in_60_epochs(name: str) -> Spec:
    return load_spec(name, fragments=["kj60"])


def load_with_akamaster_s_recipe(name: str) -> Spec:
    milestones = "train.schedule={type: multistep, milestones: [100, 150]}"
    warmup = "train.schedule.warmup={type: constant, epochs: 1, lr: 0.01}"
    return load_spec(name, overrides=["train.epochs=200", milestones, warmup])


@bug(
    "kellerjordan-17",
    "trains for a third of the paper's iterations",
    ours=load_spec,
    planted=load_in_60_epochs,
)
@bug(
    "akamaster-6",
    "warms up for an epoch, and falls by epochs that are not the paper's iterations",
    ours=load_spec,
    planted=load_with_akamaster_s_recipe,
)
def check_recipe_is_the_paper_s(load: Callable[[str], Spec]) -> None:
    train = load("resnet110").train
    assert train is not None
    assert (train.steps, train.epochs, train.batch_size) == (64_000, None, 128)
    schedule: Any = train.schedule
    assert schedule.milestones == (32_000, 48_000)
    assert (schedule.warmup.steps, schedule.warmup.lr) == (400, 0.01)


def evaluate_with_graphs(model: nn.Module, batches: Any) -> Any:
    """Compute what a backward pass would need."""
    model.eval()
    return [model(given) for given, _ in batches]


class Watching(nn.Module):
    """A network that remembers whether graphs are made."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)
        self.graphs: list[bool] = []

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.mean((2, 3)))
        self.graphs.append(logits.requires_grad)
        return logits


@bug(
    "kellerjordan-20a",
    "evaluation keeps what a backward pass would need",
    ours=evaluate,
    planted=evaluate_with_graphs,
)
def check_evaluation_makes_no_graph(evaluate: Callable[..., object]) -> None:
    model = Watching()
    evaluate(model, [(images(8), labels(8))])
    assert model.graphs == [False]


def read_by_tally(row: Tensor) -> float:
    tally = Tally()
    tally.add(row)
    return tally.read().losses[0]


def read_by_index(row: Tensor) -> float:
    """Index what has no dimensions."""
    loss: float = row[0].data[0].item()
    return loss


@bug(
    "kellerjordan-20b",
    "reads the loss in a way that PyTorch gave up",
    ours=read_by_tally,
    planted=read_by_index,
)
def check_loss_of_a_step_can_be_read(read: Callable[[Tensor], float]) -> None:
    assert works(lambda: read(torch.tensor([0.5, 3.0, 0.0]))) == 0.5


def with_seed(seed: int) -> list[Tensor]:
    return list(build(cifar_spec(1), seed=seed).parameters())


def whatever_seed(seed: int) -> list[Tensor]:
    """Draw from what the process drew before."""
    return list(build(cifar_spec(1)).parameters())


@bug("kellerjordan-21c", "there is no seed", ours=with_seed, planted=whatever_seed)
@bug("akamaster-19a", "there is no seed", ours=with_seed, planted=whatever_seed)
@bug("kuangliu-15b", "there is no seed", ours=with_seed, planted=whatever_seed)
def check_seed_decides_the_weights(weights: Callable[[int], list[Tensor]]) -> None:
    first = weights(3)
    torch.rand(5)
    assert all(map(torch.equal, first, weights(3)))
    assert not all(map(torch.equal, first, weights(4)))


def rate_by_step(step: int) -> float:
    return make_schedule(recipe(**WARMED_UP), 5)(step)


def rate_by_last_epoch(step: int) -> float:
    """Make a scheduler in the middle of an optimizer that knows no beginning."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    return float(MultiStepLR(optimizer, [10], last_epoch=step - 1).get_last_lr()[0])


def rate_warmed_up_again(step: int) -> float:
    """Warm up whenever a run goes on."""
    return 0.01


@bug(
    "akamaster-1",
    "resuming ends in a KeyError of the scheduler",
    ours=rate_by_step,
    planted=rate_by_last_epoch,
)
@bug(
    "akamaster-5a",
    "resuming warms up again",
    ours=rate_by_step,
    planted=rate_warmed_up_again,
)
def check_rate_after_resuming_is_that_of_the_step(rate: Callable[[int], float]) -> None:
    assert works(lambda: rate(7)) == 0.1
    assert works(lambda: rate(12)) == pytest.approx(0.01)


def rates_of_schedule(count: int) -> list[float]:
    schedule = make_schedule(recipe(**WARMED_UP), 5)
    return [schedule(step) for step in range(count)]


def rates_set_by_hand(count: int) -> list[float]:
    """Lower the rate, and trust in a scheduler that multiplies it to bring it back."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = MultiStepLR(optimizer, [10])
    for group in optimizer.param_groups:
        group["lr"] = 0.01
    rates = []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return rates


@bug(
    "akamaster-5b",
    "the rate stays at a tenth after the warm-up",
    ours=rates_of_schedule,
    planted=rates_set_by_hand,
)
def check_warm_up_comes_to_an_end(rates: Callable[[int], list[float]]) -> None:
    assert rates(12) == pytest.approx([0.01] * 4 + [0.1] * 6 + [0.01] * 2)


def step_in_bf16(model: nn.Module) -> None:
    train_step(TrainStep, model, bf16=True)(0, batch(0))


def step_of_halves(model: nn.Module) -> None:
    """Keep weights and statistics in 16 bits."""
    model.bfloat16()
    given = batch(0)
    loss = nn.functional.cross_entropy(model(given.images.bfloat16()), given.targets)
    torch.autograd.backward(loss)


@bug(
    "akamaster-10",
    "half precision holds weights and batch statistics too",
    ours=step_in_bf16,
    planted=step_of_halves,
)
def check_weights_and_statistics_stay_in_fp32(take: Callable[[nn.Module], None]) -> None:
    model = small_net()
    take(model)
    kinds = {tensor.dtype for tensor in model.state_dict().values()}
    assert kinds == {torch.float32, torch.int64}
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters())


def hits_of_scores(logits: Tensor, answers: Tensor) -> int:
    return int(score(logits, answers).in_top5.sum())


def hits_of_a_view(logits: Tensor, answers: Tensor) -> int:
    """View what does not lie in one piece."""
    likeliest = logits.topk(5, 1)[1].t()
    correct = likeliest.eq(answers.view(1, -1).expand_as(likeliest))
    return int(correct[:5].view(-1).float().sum(0))


@bug("akamaster-18", "top-5 cannot be computed", ours=hits_of_scores, planted=hits_of_a_view)
def check_top5_is_counted(hits: Callable[[Tensor, Tensor], int]) -> None:
    logits = torch.arange(10.0).repeat(3, 1)
    assert works(lambda: hits(logits, torch.tensor([9, 5, 4]))) == 2


def accuracy_alone(model: nn.Module, batches: Any) -> Any:
    return SimpleNamespace(top1=evaluate(model, batches).top1)


@bug(
    "akamaster-19b",
    "evaluation tells neither the loss nor how many images there were",
    ours=evaluate,
    planted=accuracy_alone,
)
def check_evaluation_tells_loss_and_number(evaluate: Callable[..., Any]) -> None:
    model, given, answers = small_net().eval(), images(8), labels(8)
    found = evaluate(model, [(given[:5], answers[:5]), (given[5:], answers[5:])])
    expected = nn.functional.cross_entropy(model(given), answers).item()
    assert works(lambda: (found.images, found.loss)) == (8, pytest.approx(expected))

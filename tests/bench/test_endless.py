"""What is measured in a spec's place."""

import pytest

from resnet_builder.bench.endless import endless, recipe_steps
from resnet_builder.builder import read_spec
from resnet_builder.data.splits import load_data
from resnet_builder.training.schedule import Plan
from tests.bench.specs import tiny


@pytest.mark.parametrize(
    ("name", "steps"),
    [
        ("resnet20", 64_000),
        ("resnet18_cifar", 200 * (50_000 // 128)),
        ("resnet20_digits", 30 * ((1437 - 287) // 64)),
        ("resnet50", None),
    ],
)
def test_length_of_a_recipe_is_known_where_the_data_set_s_is(name: str, steps: int | None) -> None:
    assert recipe_steps(read_spec(name)) == steps


def test_fraction_set_aside_shortens_an_epoch() -> None:
    given = ("data.dataset=cifar10", "model.image_size=32", "model.num_classes=10")
    spec = tiny(*given, "data.validation=0.1", "train.epochs=2")
    assert recipe_steps(spec) == 2 * (45_000 // 16)


def test_images_are_made_up_in_the_spec_s_size_and_nothing_is_read() -> None:
    trial = endless(tiny("data.validation=20"), batch_size=16, accumulate=1)
    splits = load_data(trial)
    (images,) = splits.train.read([splits.train.labels[:3] * 0])
    assert images.shape[1:] == trial.model.image_shape == (3, 8, 8)
    assert len(splits.classes) == 4
    assert splits.validation is None


@pytest.mark.parametrize(
    "optimizer",
    [
        "{type: sgd, lr: 0.1}",
        "{type: adamw, lr: 0.01}",
    ],
)
def test_trial_takes_the_recipe_s_steps_without_end_and_hardly_moves(optimizer: str) -> None:
    spec = tiny(
        f"train.optimizer={optimizer}",
        "train.schedule={type: multistep, milestones: [10]}",
        "train.clip_norm=1.0",
        "train.early_stop={patience: 1}",
    )
    train = endless(spec, batch_size=8, accumulate=2).train
    assert train is not None
    plan = Plan(train, 4)
    assert (plan.total_steps, plan.evaluation_steps) == (2**31 - 1, 2**31 - 1)
    assert (plan.batch_size, plan.micro_batch_size) == (8, 4)
    assert plan.checkpoint_seconds is None
    assert max(map(plan.lr, (0, 1, 10, 10_000_000))) <= 1e-6
    assert train.clip_norm == 1.0
    assert train.early_stop is None

"""A spec, measured."""

import pytest

from resnet_builder.bench import measure, measuring
from resnet_builder.bench.sizing import Size
from resnet_builder.errors import ResourceError, UsageError
from resnet_builder.summary import summarize
from tests.bench.specs import tiny


def test_figures_fit_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "measurable_size", lambda *_, **__: Size(16, 2))
    rounds = []
    spec = tiny("train.accumulate=2")
    found = measure(spec, seconds=0.2, warn=pytest.fail, report=lambda *told: rounds.append(told))
    assert rounds == [("measuring", number, 5) for number in range(1, 6)]
    assert found.size == Size(16, 2)
    assert found.ours.images_per_second == pytest.approx(16 / found.ours.seconds_per_step)
    assert found.plain.images_per_second == pytest.approx(8 / found.plain.seconds_per_step)
    assert found.recipe.steps == 1000
    assert found.recipe.seconds == pytest.approx(1000 * found.ours.seconds_per_step)
    summary = summarize(spec)
    assert found.memory.parameters == summary.parameters
    assert found.memory.activation_bytes == pytest.approx(8 * summary.activation_bytes, rel=0.01)
    assert 0 < found.floor_share < 1
    assert {work.count for work, _ in found.floor.work} == {2, 4}  # once or twice, in two parts


@pytest.mark.parametrize("section", ["data", "train"])
def test_spec_without_a_recipe_or_data_is_refused(section: str) -> None:
    spec = tiny().model_copy(update={section: None})
    with pytest.raises(UsageError, match="tiny: a spec to measure needs `data` and `train`"):
        measure(spec, seconds=0.1, warn=pytest.fail)


def test_frozen_layers_stay_out_of_it_and_first_weights_are_not_read() -> None:
    frozen = tiny("model.weights={path: nowhere.safetensors}", "train.freeze=[stem, layer1]")
    found = measure(frozen, seconds=0.1, warn=pytest.fail)
    kinds = [work.kind for work, _ in found.floor.work]
    assert kinds.count("weight_gradient") < kinds.count("forward")


@pytest.mark.parametrize(
    ("overrides", "value", "why"),
    [
        ((), "no", "`auto` means that CUDA compiles"),
        (("run.compile=false",), "no", "the spec says so"),
    ],
)
def test_why_the_network_is_not_compiled_is_told(
    overrides: tuple[str, ...], value: str, why: str
) -> None:
    found = measure(tiny(*overrides), seconds=0.1, warn=pytest.fail)
    (setting,) = [setting for setting in found.settings if setting.name == "compile"]
    assert setting.value == value
    assert why in setting.why


def test_network_that_memory_cannot_hold_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "free_memory", lambda _device: 30 * 2**20)
    with pytest.raises(ResourceError, match="tiny does not fit into memory: measuring it takes"):
        measure(tiny(), seconds=0.1, warn=pytest.fail)

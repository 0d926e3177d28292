"""How a spec is computed, in words."""

import pytest

from resnet_builder.bench.settings import explain
from resnet_builder.runs.records import RuntimeConfig
from resnet_builder.spec.schema import RunSpec

CHOICES = RuntimeConfig(
    device="cpu",
    precision="bf16",
    memory_format="channels_last",
    compile=False,
    fused=True,
    cpu_kernels=True,
    threads=2,
    accumulate=1,
    world_size=1,
)

ASKED = "the spec says so"


def told(run: RunSpec, **changes: object) -> dict[str, tuple[str, str]]:
    """Return value and reason of each setting."""
    settings = explain(CHOICES.model_copy(update=changes), run)
    return {setting.name: (setting.value, setting.why) for setting in settings}


def test_every_setting_has_its_own_reason() -> None:
    found = told(RunSpec())
    assert list(found) == [
        "device",
        "precision",
        "memory format",
        "compile",
        "fused optimizer",
        "CPU kernels",
        "threads",
    ]
    assert len({why for _, why in found.values()}) == len(found)
    assert found["threads"][0] == "2"


def test_what_the_spec_asks_for_is_said_to_be_asked_for() -> None:
    asked = RunSpec(device="cpu", precision="bf16", threads=2)
    found = told(asked)
    names = ("device", "precision", "threads")
    assert [found[name][1] for name in names] == [ASKED] * 3


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("device", {"device": "cuda"}),
        ("precision", {"precision": "fp32"}),
        ("memory format", {"memory_format": "contiguous"}),
        ("fused optimizer", {"fused": False}),
    ],
)
def test_other_choices_have_other_reasons(name: str, change: dict[str, object]) -> None:
    before, after = told(RunSpec())[name], told(RunSpec(), **change)[name]
    assert before[0] != after[0]
    assert before[1] != after[1]

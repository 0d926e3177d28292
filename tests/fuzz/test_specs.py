"""Damaged specs: each is read and checked as ``validate`` does, or refused by a SpecError."""

import json
import random
from pathlib import Path

import pytest

from resnet_builder.builder import check_source
from resnet_builder.errors import SpecError
from resnet_builder.plugins import import_plugins
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.load import Draft, load_spec, load_spec_text, read_draft
from tests.fuzz.damage import damage_text
from tests.fuzz.harness import SECONDS, Read, fuzz, limited_time
from tests.fuzz.specs import damaged_spec, damaged_tree
from tests.spec.texts import BAD_BASE

A_BLOCK = 0.02
"""Seconds that checking takes at most for each block, of which a spec may ask for 2,000."""

FEW_BLOCKS = 40
"""Networks that are larger are checked the more rarely."""


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """Return what reads a spec from a file, and checks it."""
    path = tmp_path / "spec.yaml"
    (tmp_path / "base.yaml").write_text(BAD_BASE)

    def read(data: bytes, choose: random.Random) -> None:
        path.write_bytes(data)
        draft = read_draft(path)
        import_plugins(draft.plugins or (), (), draft.positions)
        _check(draft, choose)

    return read


def _check(draft: Draft, choose: random.Random) -> None:
    """Check the second half of a spec; one that is sound stays itself when it is written down.

    Raises:
        SpecError: Something is wrong with it.
    """
    blocks = 0 if draft.model is None else sum(stage.blocks for stage in draft.model.stages)
    if choose.random() * blocks > FEW_BLOCKS:
        return
    with limited_time(SECONDS + A_BLOCK * blocks):
        checked = check_source(draft, with_forward=choose.random() < 0.2)
        if checked.spec is None:
            raise SpecError(checked.problems)
        assert load_spec_text(dump_spec(checked.spec)) == checked.spec


@pytest.mark.parametrize(
    ("seed", "count"),
    [
        (0, 100),
        pytest.param(100, 100, marks=pytest.mark.ci),
        *(pytest.param(seed, 10_000, marks=pytest.mark.slow) for seed in range(1000, 1010)),
    ],
)
def test_damaged_spec_is_taken_or_refused(seed: int, count: int, read: Read) -> None:
    tally = fuzz(damaged_spec, read, seed=seed, count=count)
    assert min(tally.taken, tally.refused) > count / 20


def test_damaged_override_is_taken_or_refused() -> None:
    data = {"model": {"stages": [{"blocks": 1}]}}
    sound = ["model.stages.0.blocks=3", "train.optimizer={type: sgd, lr: 1}"]

    def make(choose: random.Random) -> bytes:
        text = damage_text(choose.choice(sound), choose, sound)
        return text.encode(errors="surrogatepass")

    def read(argument: bytes, choose: random.Random) -> None:
        read_draft(data, overrides=[argument.decode(errors="surrogatepass")])

    tally = fuzz(make, read, seed=0, count=600)
    assert min(tally.taken, tally.refused) > 100


def test_damaged_mapping_is_taken_or_refused() -> None:
    """From Python come things that no YAML can say."""
    odd = [b"x", {1, 2}, object(), (1, 2), 1j, Path("x"), float("nan"), {1: 2}, {None: 1}, str]
    endless: dict[str, object] = {}
    endless["model"] = endless

    def read(data: bytes, choose: random.Random) -> None:
        tree = json.loads(data)
        if isinstance(tree, dict):
            tree[choose.choice((*tree, "model"))] = choose.choice((*odd, endless))
        load_spec(tree if isinstance(tree, dict) else {"model": tree})

    tally = fuzz(lambda choose: json.dumps(damaged_tree(choose)).encode(), read, seed=0, count=50)
    assert tally.refused > 40

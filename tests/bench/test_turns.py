"""Training in turns with others."""

import tempfile
from pathlib import Path

import pytest

from resnet_builder.bench.endless import endless
from resnet_builder.bench.turns import WARM_UP_STEPS, Interlude, train_in_turns
from resnet_builder.errors import Stopped
from resnet_builder.runs.records import RuntimeConfig
from tests.bench.specs import tiny

TRIAL = endless(tiny(), batch_size=16, accumulate=1)


class Polls:
    """Counts the steps that begin; stops before one of them, if asked to."""

    def __init__(self, stop_at: int = 0) -> None:
        self.count = 0
        self._stop_at = stop_at

    def __call__(self) -> bool:
        self.count += 1
        return self.count == self._stop_at


def test_turns_alternate_and_count_whole_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    polls, begun = Polls(), list[int]()

    def prepare(choices: RuntimeConfig) -> Interlude:
        assert choices.precision == "fp32"
        return lambda: begun.append(polls.count)

    turns = train_in_turns(
        TRIAL, rounds=3, seconds=0, interlude=prepare, warn=pytest.fail, stop=polls
    )
    # The step is polled for, then the one before it is known to be over.
    assert begun == [WARM_UP_STEPS + 1, WARM_UP_STEPS + 2, WARM_UP_STEPS + 3]
    assert len(turns.seconds_per_step) == 3
    assert min(turns.seconds_per_step) > 0
    assert list(tmp_path.iterdir()) == []


def test_time_of_others_is_not_the_training_s() -> None:
    from time import sleep

    def prepare(_choices: RuntimeConfig) -> Interlude:
        return lambda: sleep(0.3)

    turns = train_in_turns(
        TRIAL, rounds=2, seconds=0.05, interlude=prepare, warn=pytest.fail, stop=Polls()
    )
    assert max(turns.seconds_per_step) < 0.3


def test_user_can_stop_it() -> None:
    with pytest.raises(Stopped, match="stopped while measuring"):
        train_in_turns(
            TRIAL,
            rounds=3,
            seconds=0,
            interlude=lambda _choices: lambda: None,
            warn=pytest.fail,
            stop=Polls(stop_at=5),
        )

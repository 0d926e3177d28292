"""What steps report, read at once."""

import torch

from resnet_builder.training.tally import Reading, Tally


def tallied(*rows: tuple[float, float, float]) -> Tally:
    tally = Tally()
    for row in rows:
        tally.add(torch.tensor(row))
    return tally


def test_a_reading_is_of_the_steps_since_the_one_before() -> None:
    tally = tallied((0.5, 3, 0), (0.25, 4, 0))
    assert tally.read() == Reading((0.5, 0.25), 7.0, None)
    tally.add(torch.tensor((2.0, 1, 0)))
    assert tally.read() == Reading((2.0,), 1.0, None)


def test_the_first_bad_step_is_the_one_that_counts() -> None:
    assert tallied((0.5, 3, 0), (0.5, 3, 1), (0.5, 3, 1)).read().first_bad == 1


def test_there_may_be_nothing_to_read() -> None:
    assert Tally().read() == Reading((), 0, None)

"""Specs as people write them."""

from resnet_builder.spec.commented import commented_spec


def test_parts_are_in_one_line_and_comments_beside_them() -> None:
    text = commented_spec(
        {
            "name": "a",
            "model": {"block": {"type": "basic", "dropout": 0.1}, "stages": [{"channels": 4}]},
            "data": {"augment": ["horizontal_flip"]},
        },
        header=["A.", "", "B"],
        beside={"block": "the block", "stages": "one", "augment": ""},
        footer=["End."],
    )
    assert text == (
        "# A.\n#\n# B\n"
        "name: a\n"
        "model:\n"
        "  block: {type: basic, dropout: 0.1} # the block\n"
        "  stages: # one\n"
        "    - {channels: 4}\n"
        "data:\n"
        "  augment: [horizontal_flip]\n"
        "# End.\n"
    )


def test_long_lines_are_broken_and_long_comments_stand_above() -> None:
    part = {"type": "multistep", "milestones": [1000 * n for n in range(1, 17)]}
    text = commented_spec(
        {"train": {"schedule": part, "lr": 0.1}}, beside={"schedule": "s", "lr": "x" * 100}
    )
    assert text == (
        "train:\n"
        "  schedule: # s\n"
        "    type: multistep\n"
        f"    milestones: {part['milestones']}\n"
        f"  # {'x' * 100}\n"
        "  lr: 0.1\n"
    )

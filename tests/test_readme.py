"""What README shows is what happens."""

import re
import shlex
from pathlib import Path

import pytest
import torch

from resnet_builder.spec.bundled import find_spec
from resnet_builder.spec.loading import load_spec, load_spec_text
from tests.cli.experiments import call

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", blocks("console"))
def test_command_prints_what_is_shown(block: str) -> None:
    command, _, wanted = block.partition("\n")
    program, *arguments = shlex.split(command.removeprefix("$ "))
    assert program == "resnet-build"
    result = call(*arguments)
    shown = result.stdout + result.stderr
    assert [line.rstrip() for line in shown.splitlines()] == wanted.splitlines()


def test_python_examples_run() -> None:
    names: dict[str, object] = {}
    for code in blocks("python"):
        exec(code, names)  # our own file
    model, features = names["model"], names["features"]
    assert model.fc(features(torch.ones(1, 3, 32, 32))).shape == (1, 10)  # type: ignore[attr-defined, operator]


def test_spec_example_is_the_bundled_network() -> None:
    (text,) = blocks("yaml")
    assert load_spec_text(text).model == load_spec(find_spec("resnet32")).model


def test_commands_name_flags_and_specs_that_exist() -> None:
    for line in "".join(blocks("sh")).replace("\\\n", "").splitlines():
        if line.startswith("resnet-build"):
            command, *arguments = shlex.split(line, comments=True)[1:]
            if command == "train" and not arguments[0].startswith("runs/"):
                find_spec(arguments[0])
            for flag in (word for word in arguments if word.startswith("-")):
                assert flag in call(command, "--help").stdout

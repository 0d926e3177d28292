"""Bugs of whole programs: flags, imports, documents, and what is refused when."""

import ast
import inspect
import re
import shlex
import tempfile
import textwrap
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import pytest

import resnet_builder
from resnet_builder.cli.main import main
from resnet_builder.device import pick_device
from resnet_builder.errors import UsageError
from resnet_builder.spec.load import load_spec
from resnet_builder.spec.schema import Spec
from tests.cli.experiments import call, write_tiny
from tests.known_bugs.bugs import bug, works

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PACKAGE = Path(resnet_builder.__file__).parent
SOURCES = [path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.py"))]
ENTRY = (PACKAGE / "__main__.py").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Ended:
    """How a call of the program ended.

    Attributes:
        code: The exit code.
        told: What it printed, errors included.
    """

    code: int
    told: str


Run = Callable[[Sequence[object]], Ended]


@contextmanager
def folder() -> Iterator[Path]:
    """Make a folder for a while."""
    with tempfile.TemporaryDirectory() as name:
        yield Path(name).resolve()


def run(arguments: Sequence[object]) -> Ended:
    result = call(*arguments)
    return Ended(result.exit_code, result.output)


def run_with_data_of_its_own(arguments: Sequence[object]) -> Ended:
    """Look for data in a place that cannot be chosen."""
    at = list(arguments).index("--data-dir")
    return run([*arguments[: at + 1], "data", *arguments[at + 2 :]])


@bug(
    "kellerjordan-14",
    "`--data-dir` is ignored",
    ours=run,
    planted=run_with_data_of_its_own,
)
def check_data_are_read_where_the_user_says(run: Run) -> None:
    with folder() as path:
        dataset = "data.dataset={type: image_folder, path: flowers}"
        ended = run(["train", write_tiny(path), "--set", dataset, "--data-dir", path / "mine"])
    assert ended.code == 3
    assert str(path / "mine" / "flowers") in ended.told


def load_by_truth(name: str, override: str) -> Spec:
    """Take any text for true that is not empty."""
    key, _, text = override.partition("=")
    return load_spec(name, overrides=[f"{key}={str(bool(text)).lower()}"])


def load_by_yaml(name: str, override: str) -> Spec:
    return load_spec(name, overrides=[override])


@bug(
    "kellerjordan-15",
    "False, as text, is true",
    ours=load_by_yaml,
    planted=load_by_truth,
)
def check_false_is_false(load: Callable[[str, str], Spec]) -> None:
    assert load("resnet20", "model.zero_init_residual=false").model.zero_init_residual is False
    assert load("resnet20", "model.zero_init_residual=False").model.zero_init_residual is False
    assert load("resnet20", "model.zero_init_residual=true").model.zero_init_residual is True


def cuda_or_nothing(name: str) -> Any:
    """Refuse whatever is not CUDA."""
    raise UsageError("CUDA is not available")


@bug("kellerjordan-18a", "needs CUDA", ours=pick_device, planted=cuda_or_nothing)
def check_cpu_will_do(pick: Callable[[str], Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        patch.setattr("torch.backends.mps.is_available", lambda: False)
        assert works(lambda: pick("auto")).type == "cpu"


def run_after_downloading(arguments: Sequence[object]) -> Ended:
    """Fetch the data first."""
    place = Path(str(arguments[-1]))
    place.mkdir()
    (place / "cifar-10-binary.tar.gz").write_bytes(b"170 MB")
    return run(arguments)


@bug(
    "kellerjordan-18b",
    "a missing device is told only after the data are downloaded",
    ours=run,
    planted=run_after_downloading,
)
def check_missing_device_is_told_before_anything_is_read(run: Run) -> None:
    with folder() as path, pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.cuda.is_available", lambda: False)
        out = ("--out", path / "run")
        ended = run(
            ["train", "resnet20", "--set", "run.device=cuda", *out, "--data-dir", path / "data"]
        )
        assert ended.code == 2
        assert "there is no device 'cuda' here" in ended.told
        assert list(path.iterdir()) == []


@click.command()
@click.option("--epochs", type=int)
@click.option("--pretrained", is_flag=True)
def train_with_a_dead_flag(epochs: int, pretrained: bool) -> None:
    """Take a flag and never look at it."""
    click.echo(epochs)


@bug(
    "akamaster-9",
    "`--pretrained` is accepted and does nothing",
    ours=list(main.commands.values()),
    planted=[train_with_a_dead_flag],
)
def check_every_flag_is_looked_at(commands: list[click.Command]) -> None:
    assert commands
    for command in commands:
        for one in command.commands.values() if isinstance(command, click.Group) else [command]:
            assert one.callback is not None
            code = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(one.callback))))
            [function] = [node for node in code.body if isinstance(node, ast.FunctionDef)]
            read = {
                node.id
                for statement in function.body
                for node in ast.walk(statement)
                if isinstance(node, ast.Name)
            }
            assert {p.name for p in one.params if p.expose_value} <= read


@dataclass(frozen=True)
class Named:
    """What a project names of itself.

    Attributes:
        readme: Its README, with links.
        entry_points: The functions that it says can be called, as ``module:function``.
    """

    readme: str
    entry_points: tuple[str, ...]


def named_by_ours() -> Named:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return Named(README, tuple(project["scripts"].values()))


def named_by_akamaster() -> Named:
    """Name a file and a module that nobody put there."""
    readme = "[download](pretrained_models/resnet20.th)"
    return Named(readme, ("resnet_builder.resnet_cifar10:resnet20",))


@bug(
    "akamaster-17",
    "README and entry points name what there is not",
    ours=named_by_ours,
    planted=named_by_akamaster,
)
def check_what_is_named_is_there(named: Callable[[], Named]) -> None:
    found = named()
    links = re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", found.readme)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
    for entry in found.entry_points:
        module, _, function = entry.partition(":")
        assert callable(getattr(works(partial(import_module, module)), function))


def told_by_akamaster(arguments: Sequence[object]) -> Ended:
    """Print whether to evaluate, instead of the path."""
    return Ended(0, "=> loaded checkpoint 'False' (epoch 3)")


@bug(
    "akamaster-19c",
    "what is told on resuming names no path",
    ours=run,
    planted=told_by_akamaster,
)
def check_resuming_names_the_run(run: Run) -> None:
    with folder() as path:
        spec, out = write_tiny(path), path / "run"
        call("train", spec, "--out", out, "--set", "train.epochs=1")
        ended = run(["train", "--resume", out])
    assert ended.code == 0
    assert str(out) in ended.told


@bug(
    "kuangliu-9",
    "README shows a command that does something else by now",
    ours=README,
    planted=f"{README}\n```sh\nresnet-build train resnet20 --resume --lr=0.01\n```\n",
)
def check_commands_of_readme_can_be_given(readme: str) -> None:
    blocks = re.findall(r"```(?:sh|console)\n(.*?)```", readme, flags=re.DOTALL)
    text = "".join(blocks).replace("\\\n", "")
    lines = [line.removeprefix("$ ") for line in text.splitlines()]
    commands = [line for line in lines if line.startswith("resnet-build ")]
    assert len(commands) > 5
    for line in commands:
        _, name, *arguments = shlex.split(line, comments=True)
        options = {flag for param in main.commands[name].params for flag in param.opts}
        given = {word.partition("=")[0] for word in arguments if word.startswith("--")}
        assert given <= options, line


def calls_on_import(source: str) -> set[str]:
    """Return the names of the functions that a module calls while it is imported."""
    guarded = (ast.FunctionDef, ast.ClassDef)
    statements = [node for node in ast.parse(source).body if not isinstance(node, guarded)]
    found = set()
    for statement in statements:
        if isinstance(statement, ast.If) and "__main__" in ast.unparse(statement.test):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call):
                found.add(ast.unparse(node.func).rpartition(".")[2])
    return found


STTY = "import os\n_, width = os.popen('stty size', 'r').read().split()\n"
PARSING = "import argparse\nargs = argparse.ArgumentParser().parse_args()\n"
UNGUARDED = "from resnet_builder.cli.main import main\n\nmain()\n"


@bug(
    "kuangliu-12",
    "importing needs a terminal",
    ours=SOURCES,
    planted=[STTY],
)
@bug(
    "kuangliu-15c",
    "importing reads the command line",
    ours=SOURCES,
    planted=[PARSING],
)
@bug(
    "kuangliu-15d",
    "workers, which import the program again, run it again",
    ours=[ENTRY],
    planted=[UNGUARDED],
)
def check_importing_does_nothing(sources: list[str]) -> None:
    assert sources
    acting = {"popen", "run", "Popen", "system", "check_output", "get_terminal_size", "main"}
    for source in sources:
        assert not calls_on_import(source) & (acting | {"parse_args", "exit", "input", "print"})

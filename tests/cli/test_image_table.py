"""Labels from a table: ``validate``, ``train``, a resume and ``evaluate``."""

import json
from pathlib import Path

import pytest

from tests.cli.experiments import call
from tests.data.folders import write_image, write_pets, write_pets_spec


def write_table(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


def table_spec(folder: Path) -> Path:
    """Write an experiment on the pets by a table, which lies beside them."""
    pets = write_pets(folder)
    names = sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.bmp"))
    rows = [",".join((name, *reversed(name.split("/")[:2]))) for name in names]
    write_table(folder / "labels.csv", "file,label,split", *rows)
    spec = write_pets_spec(folder)
    text = spec.read_text().replace(
        "{type: image_folder, path: pets}",
        f"{{type: image_table, path: '{folder / 'labels.csv'}', root: pets}}",
    )
    spec.write_text(text)
    return spec


def test_table_is_validated_trained_resumed_and_evaluated(folder: Path) -> None:
    spec = table_spec(folder)
    table = folder / "labels.csv"
    text = table.read_text()
    table.write_text(text.replace("train/ant/0.bmp,ant", "train/ant/0.bmp,"))
    validated, trained = (call(name, spec, "--data-dir", folder) for name in ("validate", "train"))
    assert (validated.exit_code, trained.exit_code) == (3, 3)
    assert "  line 12: its label is empty\n" in validated.stderr
    assert trained.stderr.endswith(validated.stderr)

    table.write_text(text)
    result = call("train", spec, "--data-dir", folder, "--out", "run")
    assert result.exit_code == 0, result.stderr
    own, other = (
        call("evaluate", "run", *more, "--data-dir", folder, "--json")
        for more in ((), ("--data", folder / "pets" / "test"))
    )
    assert own.exit_code == 0, own.stderr
    assert own.stdout == other.stdout
    for name in ("one.bmp", "two.bmp"):
        write_image(folder / "more" / name, 5)
    write_table(folder / "more" / "x.tsv", "image,class", "one,bee", "two,ant")
    result = call(
        "evaluate", "run", "--data", folder / "more" / "x.tsv", "--data-dir", folder, "--json"
    )
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["images"] == 2

    # The labels decide the bits, too.
    (folder / "run" / "result.json").unlink()
    for path in (folder / "run" / "checkpoints").iterdir():
        path.unlink()
    table.write_text(text.replace("train/ant/0.bmp,ant", "train/ant/0.bmp,bee"))
    result = call("train", "--resume", "run", "--data-dir", folder)
    assert result.exit_code == 3
    assert "  train/ant: its contents have changed\n" in result.stderr
    table.write_text(text)
    assert call("train", "--resume", "run", "--data-dir", folder).exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        pytest.param("separator: '|'", id="separator"),
        pytest.param("label_columns: [big, red]", id="columns", marks=pytest.mark.ci),
    ],
)
def test_several_labels_are_trained_evaluated_and_compared_on_resume(
    options: str, folder: Path
) -> None:
    spec = table_spec(folder)
    table = folder / "labels.csv"
    header, *rows = table.read_text().splitlines()
    lines = [f"{header},big,red"]
    for number, row in enumerate(rows):
        file, _, split = row.split(",")
        labels = [name for bit, name in enumerate(("big", "red")) if (number + 1) >> bit & 1]
        ones = ",".join(str(int(name in labels)) for name in ("big", "red"))
        lines.append(f"{file},{'|'.join(labels)},{split},{ones}")
    write_table(table, *lines)
    text = spec.read_text().replace("root: pets}", f"root: pets, {options}}}")
    spec.write_text(text)
    flags = ("--data-dir", folder)
    for command in ("validate", "train"):
        result = call(command, spec, *flags)
        assert result.exit_code == 2
        assert "`cross_entropy` is for one label an image" in result.stderr
    spec.write_text(text.replace("train:\n", "train:\n  loss: binary_cross_entropy\n", 1))
    assert call("validate", spec, *flags).exit_code == 0
    result = call("train", spec, *flags, "--out", "run")
    assert result.exit_code == 0, result.stderr
    own, other = (
        call("evaluate", "run", *more, *flags, "--json") for more in ((), ("--data", table))
    )
    assert own.exit_code == 0, own.stderr
    assert own.stdout == other.stdout
    assert json.loads(own.stdout)["classes"] == ["big", "red"]
    (folder / "run" / "result.json").unlink()
    for path in (folder / "run" / "checkpoints").iterdir():
        path.unlink()
    write_table(table, *(line.replace("big|red,train,1,1", "red,train,0,1") for line in lines))
    result = call("train", "--resume", "run", *flags)
    assert result.exit_code == 3
    assert "  train: its contents have changed\n" in result.stderr


def test_nothing_in_a_table_reaches_a_terminal_raw(folder: Path) -> None:
    evil = "\x1b]0;x\x07\u202e\rerror: forged"
    spec = table_spec(folder)
    table = folder / "labels.csv"
    text = table.read_text()
    table.write_text(text.replace(",bee,", f',"{evil}",'), newline="")
    result = call("train", spec, "--data-dir", folder, "--out", "run")
    assert result.exit_code == 0, result.stderr
    for change in ((",train", f',"{evil}"'), ("file,", f'"{evil}",'), ("0.bmp", evil)):
        table.write_text(text.replace(*change), newline="")
        results = [
            call("validate", spec, "--data-dir", folder),
            call("evaluate", "run", "--data", table, "--data-dir", folder, "--json"),
        ]
        assert [one.exit_code for one in results] in ([3, 3], [3, 2])
        for one in results:
            assert one.output.replace("\n", "").isprintable()
            assert "\nerror: forged" not in one.output

"""Files: which are read, and how their bytes become text."""

import os
import tracemalloc
from pathlib import Path

import pytest

from resnet_builder.errors import SpecError, StorageError
from resnet_builder.spec.load import load_spec, load_spec_text
from resnet_builder.spec.plain import plain
from resnet_builder.spec.reading import MAX_BYTES, checked, read_yaml
from tests.spec.texts import FULL, write

NOTHING = "there is no such file"


def refusal(path: Path) -> str:
    with pytest.raises(SpecError) as raised:
        read_yaml(path)
    [problem] = raised.value.errors
    assert problem.file == str(path)
    return f"{problem.code}: {problem.message}"


def test_missing_file_is_named_row01(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == f"unknown-name: {NOTHING}"
    assert refusal(tmp_path / "none" / "none.yaml") == f"unknown-name: {NOTHING}"


def test_directory_is_no_spec_row01(tmp_path: Path) -> None:
    assert refusal(tmp_path) == "wrong-type: this is a directory, not a file"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
@pytest.mark.timeout(5)
def test_fifo_is_not_waited_for_row01(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    message = "wrong-type: this is a pipe or a device, not a file"
    assert refusal(tmp_path / "fifo.yaml") == message


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices here")
@pytest.mark.timeout(5)
def test_endless_device_is_not_read_row31(tmp_path: Path) -> None:
    link = tmp_path / "zero.yaml"
    link.symlink_to("/dev/zero")
    assert refusal(link) == "wrong-type: this is a pipe or a device, not a file"


def test_unreadable_file_is_a_storage_error_row01(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object) -> None:
        raise PermissionError(13, "Permission denied")

    path = tmp_path / "spec.yaml"
    path.write_text(FULL)
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(StorageError) as raised:
        read_yaml(path)
    assert str(raised.value) == f"cannot read {path}: Permission denied"
    assert raised.value.exit_code == 7


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="nothing is unreadable here")
def test_file_without_permissions_is_a_storage_error_row01(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(FULL)
    path.chmod(0)
    with pytest.raises(StorageError, match="cannot read"):
        read_yaml(path)


@pytest.mark.parametrize("name", ["a\0b.yaml", "\ud800.yaml", "x" * 5000 + ".yaml"])
def test_impossible_file_name_is_a_missing_file(name: str, tmp_path: Path) -> None:
    assert refusal(tmp_path / name) == f"unknown-name: {NOTHING}"


def test_large_file_is_refused_after_a_bounded_read_row31(tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    with path.open("wb") as file:
        file.truncate(100_000_000)
    tracemalloc.start()
    assert refusal(path) == "limit: the file is larger than 256 KiB"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * MAX_BYTES


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a: " + "x" * 5_000_000, id="row31-one-scalar"),
        pytest.param("".join(f"k{n}: 0\n" for n in range(100_000)), id="row31-many-keys"),
    ],
)
def test_large_text_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "large.yaml"
    path.write_text(text)
    assert refusal(path) == "limit: the file is larger than 256 KiB"


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\xef\xbb\xbf" + FULL.encode(), id="row12-bom"),
        pytest.param(FULL.replace("\n", "\r\n").encode(), id="row12-crlf"),
        pytest.param(FULL.replace("\n", "\r").encode(), id="row12-cr"),
        pytest.param(FULL.rstrip("\n").encode(), id="row12-no-final-newline"),
        pytest.param(b"\xef\xbb\xbf%YAML 1.2\r\n---\r\n" + FULL.encode(), id="row12-all"),
    ],
)
def test_spec_is_the_same_in_every_accepted_encoding(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "full.yaml"
    path.write_bytes(data)
    assert load_spec(path) == load_spec_text(FULL)
    assert plain(read_yaml(path).root) == plain(read_yaml(write(tmp_path, FULL)).root)


@pytest.mark.parametrize(
    ("data", "place", "message"),
    [
        pytest.param("name: x".encode("utf-16"), (1, 1), "the file is UTF-16", id="row13-utf16"),
        pytest.param(
            "name: x".encode("utf-16-be"), (1, 1), "U+0000 cannot stand", id="row13-utf16-no-mark"
        ),
        pytest.param(b"a: 1\nb: caf\xe9", (2, 7), "byte 0xE9 is not UTF-8", id="row13-latin1"),
        pytest.param(
            b"\xef\xbb\xbfa: 1\r\nb\xe9", (2, 2), "byte 0xE9 is not UTF-8", id="row13-bom-latin1"
        ),
        pytest.param(b"a: x\0", (1, 5), "U+0000 cannot stand", id="row13-nul"),
        pytest.param(b"a: 1\r\rb: \x07", (3, 4), "U+0007 cannot stand", id="row13-bell"),
        pytest.param(b"a: \x1b[2J", (1, 4), "U+001B cannot stand", id="row13-escape"),
        pytest.param("a: \u2028".encode(), (1, 4), "U+2028 cannot stand", id="row13-separator"),
        pytest.param("a: \x85".encode(), (1, 4), "U+0085 cannot stand", id="row13-next-line"),
        pytest.param(b"a: \xed\xa0\x80", (1, 4), "byte 0xED is not", id="row13-surrogate"),
        pytest.param(b'a: "\\ud800"', (1, 4), "half of a surrogate", id="row13-surrogate-escape"),
        pytest.param(b'"\\udfff": 1', (1, 1), "half of a surrogate", id="row13-surrogate-key"),
    ],
)
def test_other_bytes_are_refused_where_they_stand(
    data: bytes, place: tuple[int, int], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(data)
    with pytest.raises(SpecError) as raised:
        load_spec(path)
    [problem] = [one for one in raised.value.errors if one.code == "yaml-syntax"]
    assert (problem.line, problem.col) == place
    assert message in problem.message


def test_text_with_half_a_pair_is_refused() -> None:
    with pytest.raises(SpecError, match=r"<text>:2:2: error\[yaml-syntax\]: character U\+D800"):
        load_spec_text("a: 1\nb\ud800: 2")


def test_checked_text_keeps_every_other_character() -> None:
    text = "a: \t\u00e9\u4e2d\U0001f600\u200b\ufeff\n"
    assert checked(text, "text").text == text

"""The Hugging Face Hub, by a stand-in: upload, download, pinned commits, refusals, no network."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants

from resnet_builder import build_from_spec, load_run
from resnet_builder.inference import load_model
from resnet_builder.runs.records import DataRecord
from resnet_builder.weights import hub as downloads
from resnet_builder.weights.file import read_header
from tests.cli.experiments import call, write_tiny
from tests.data.folders import write_image
from tests.hub_server import Hub, Repository
from tests.publishing.test_folder import run_card

# The Hub's library uploads in a way that its HTTP library is going to change.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=<...>':DeprecationWarning")


def push(run: Path, *arguments: object, to: str = "net") -> tuple[int, str]:
    result = call("publish", run, "--to", to, "--push", "me/net", *arguments)
    return result.exit_code, result.stderr.splitlines()[-1] if result.stderr else ""


def forget(folder: Path) -> None:
    """Forget what this process and the cache know of the Hub."""
    downloads._download.cache_clear()
    shutil.rmtree(folder / "hub-cache", ignore_errors=True)


@pytest.mark.ci
def test_pushed_repository_has_the_folder_s_files(run: Path, folder: Path, hub: Hub) -> None:
    result = call("publish", run, "--to", "net", "--push", "me/net")
    assert result.exit_code == 0, result.output
    assert f"pushed it to {hub.url}/me/net" in result.stdout
    repository = hub.repositories["me/net"]
    assert not repository.private
    for file in ("README.md", "model.safetensors", "spec.yaml", "result.json"):
        assert repository.files[file] == (folder / "net" / file).read_bytes()
    assert b'load_run("hf-hub:me/net"' in repository.files["README.md"]
    assert "POST /api/validate-yaml" in hub.requests
    assert hub.requests.count("POST /api/models/me/net/commit/main") == 1

    # Another time: what the first one left is deleted, others' files stay.
    old = {**repository.files, "report.html": b"old", "notes.txt": b"mine"}
    repository.commit(old)
    assert push(run, "--overwrite")[0] == 0
    assert set(repository.files) == {*old} - {"report.html"}


@pytest.mark.ci
@pytest.mark.parametrize("flag", ["--private", "--public"])
def test_new_repository_is_private_or_public_as_asked(
    flag: str, run: Path, folder: Path, hub: Hub
) -> None:
    assert push(run, flag)[0] == 0
    assert hub.repositories["me/net"].private == (flag == "--private")


@pytest.mark.ci
def test_nothing_is_uploaded_to_a_public_repository_as_private(
    run: Path, folder: Path, hub: Hub
) -> None:
    hub.repositories["me/net"] = repository = Repository()
    repository.commit({})
    code, error = push(run, "--private")
    assert (code, error) == (
        3,
        "error: cannot push net to hf-hub:me/net: it exists already, and is public",
    )
    assert repository.files == {}


@pytest.mark.parametrize(
    ("pattern", "status", "said", "message"),
    [
        ("repos/create", 401, "Invalid token", "the Hub does not know you; log in by"),
        *(
            pytest.param(*case, marks=pytest.mark.ci)
            for case in (
                ("repos/create", 403, "No rights", "the Hub does not let you; does your token"),
                ("/commit/", 409, "Another commit", "the Hub is busy with another change"),
                ("/commit/", 500, "Oops", "the Hub answers 500"),
            )
        ),
    ],
)
def test_refusal_of_the_hub_is_one_line(
    pattern: str, status: int, said: str, message: str, run: Path, folder: Path, hub: Hub
) -> None:
    hub.refusals[pattern] = (status, said)
    result = call("publish", run, "--to", "net", "--push", "me/net")
    assert result.exit_code == 3
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert line.startswith(f"error: cannot push net to hf-hub:me/net: {message}")
    assert f"({status}: " in line
    assert said in line
    assert (folder / "net" / "model.safetensors").exists()


@pytest.mark.ci
def test_card_that_the_hub_refuses_is_told_before_anything_is_made(
    run: Path, folder: Path, hub: Hub
) -> None:
    code, error = push(run, "--license", "none-such")
    assert code == 3
    assert 'the Hub says of its card: "license" must be one of' in error
    assert hub.repositories == {}


def test_hub_that_cannot_be_reached_is_one_line(
    run: Path, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    code, error = push(run)
    assert code == 3
    assert error.startswith(
        "error: cannot push net to hf-hub:me/net: http://127.0.0.1:9 cannot be reached: "
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--push", "net"), "net is no repository: name it as USER/NAME"),
        (("--push", "me/net@main"), "me/net@main is no repository: name it as USER/NAME"),
        (("--private",), "a repository is private or public: --private and --public need --push"),
    ],
)
def test_names_of_no_repository_are_refused(
    arguments: tuple[str, ...], message: str, run: Path, folder: Path
) -> None:
    result = call("publish", run, "--to", "net", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("net").exists()


@pytest.mark.slow
def test_lines_of_the_card_run_from_the_repository(
    run: Path, folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = load_run(run).publish("net", push="me/net", license="mit")
    assert report.url == f"{hub.url}/me/net"
    (folder / "elsewhere").mkdir()
    monkeypatch.chdir(folder / "elsewhere")
    shutil.copy(folder / "net/spec.yaml", ".")
    assert run_card(hub.repositories["me/net"].files["README.md"].decode()) == 4


# Reading.


@pytest.fixture
def published(run: Path, folder: Path, hub: Hub) -> str:
    """Commit of ``me/net``, which was published."""
    load_run(run).publish(folder / "net", with_report=False)
    return hub.publish("me/net", folder / "net")


@pytest.mark.ci
def test_commands_and_python_read_a_repository_as_its_run(
    run: Path, folder: Path, hub: Hub, published: str
) -> None:
    write_image(folder / "image.png", 0)
    for name in ("hf-hub:me/net", f"hf-hub:me/net@{published}"):
        ours = json.loads(call("predict", run, "image.png", "--json").stdout)
        theirs = json.loads(call("predict", name, "image.png", "--json").stdout)
        assert ours["images"] == theirs["images"]
    opened = load_run("hf-hub:me/net")
    assert opened.spec.name == "tiny"
    assert opened.result == load_run(run).result
    assert opened.classes == load_run(run).classes
    imported = call(
        "import", "hf-hub:me/net", "--spec", opened.path / "spec.yaml", "-o", "x.safetensors"
    )
    assert imported.exit_code == 0, imported.output
    header = read_header(Path("x.safetensors"))
    assert header is not None
    assert header.source is not None
    assert header.source.file == f"hf-hub:me/net@{published}"
    assert header.classes == opened.classes


@pytest.mark.ci
def test_training_starts_from_a_repository_and_records_its_commit(
    run: Path, folder: Path, hub: Hub, published: str
) -> None:
    spec = write_tiny(folder)
    line = ("train", spec, "--set", "model.weights=hf-hub:me/net", "--set", "train.epochs=1")
    assert call("validate", spec, "--set", "model.weights=hf-hub:me/net").exit_code == 0
    result = call(*line, "--out", "tuned", "--set", "train.optimizer.lr=1e-12")
    assert result.exit_code == 0, result.output
    assert f"hf-hub:me/net is hf-hub:me/net@{published} now" in result.stderr
    record = DataRecord.read(folder / "tuned/data.json")
    assert record.pretrained_commit == published
    assert record.pretrained_sha256 is not None
    before, after = (load_model(path).network.state_dict() for path in (run, folder / "tuned"))
    assert torch.allclose(before["fc.weight"], after["fc.weight"], atol=1e-6)


def test_downloaded_files_serve_without_network(
    folder: Path, hub: Hub, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    overrides = ["model.weights=hf-hub:me/net"]
    spec = write_tiny(folder)
    first = build_from_spec(spec, overrides=overrides).state_dict()
    for offline in (True, False):
        downloads._download.cache_clear()
        if offline:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        else:
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
            monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
            template = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        hub.requests.clear()
        again = build_from_spec(spec, overrides=overrides).state_dict()
        assert hub.requests == []
        assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hf-hub:me/none", "there is no such repository for you"),
        ("hf-hub:me/net@v9", "cannot download hf-hub:me/net@v9: there is no such revision"),
        ("hf-hub:me/empty", "hf-hub:me/empty has neither model.safetensors nor pytorch_model.bin"),
        ("hf-hub:me", "hf-hub:me: name a repository as hf-hub:USER/NAME[@REVISION]"),
        ("hf-hub:me/net@", "name a repository as"),
    ],
)
def test_repository_that_cannot_be_read_is_one_line(
    name: str, message: str, folder: Path, hub: Hub
) -> None:
    hub.repositories["me/net"] = Repository()
    hub.repositories["me/net"].commit({})
    hub.repositories["me/empty"] = Repository()
    hub.repositories["me/empty"].commit({"README.md": b""})
    write_image(folder / "image.png", 0)
    result = call("predict", name, "image.png")
    assert result.exit_code in {2, 3, 4}
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_offline_and_never_downloaded_is_one_line(
    folder: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    write_image(folder / "image.png", 0)
    result = call("predict", "hf-hub:me/net", "image.png")
    assert result.exit_code == 3
    assert result.stderr == (
        "error: cannot download hf-hub:me/net: HF_HUB_OFFLINE is set, and it was not downloaded "
        "before\n"
    )


def test_file_that_is_too_large_is_not_downloaded(
    folder: Path, hub: Hub, published: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(downloads, "_MAX_WEIGHTS", 100)
    result = call("predict", "hf-hub:me/net", folder / "net" / "README.md")
    assert result.exit_code == 4
    assert "model.safetensors has" in result.stderr
    assert "at most 100 are read" in result.stderr
    assert not [line for line in hub.requests if line.startswith("GET")]


def test_spec_names_a_repository_in_full(folder: Path) -> None:
    result = call("validate", "resnet20", "--set", "model.weights=hf-hub:me")
    assert result.exit_code == 2
    assert "must be `hf-hub:USER/NAME` or `hf-hub:USER/NAME@REVISION`" in result.stderr

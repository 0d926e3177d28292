"""From a run, or a file of weights, to a network."""

from pathlib import Path

import pytest
import torch

from resnet_builder.builder import build, read_spec
from resnet_builder.data.splits import load_data
from resnet_builder.errors import CheckpointError, SpecError, UsageError
from resnet_builder.inference import SplitImages, evaluate_split, load_model, load_split
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.weights.file import WeightsHeader, save_weights
from resnet_builder.weights.foreign import read_foreign
from tests.cli.experiments import call, write_tiny


def header(spec: Spec) -> WeightsHeader:
    return WeightsHeader(
        spec=dump_spec(spec),
        classes=("a", "b", "c", "d"),
        mean=(0.5, 0.5, 0.5),
        std=(0.2, 0.2, 0.2),
        step=3,
    )


@pytest.fixture
def spec(tmp_path: Path) -> Spec:
    return read_spec(write_tiny(tmp_path))


def test_network_is_the_one_that_was_saved(tmp_path: Path, spec: Spec) -> None:
    network = build(spec, seed=5)
    save_weights(tmp_path / "x.safetensors", network.state_dict(), header(spec))
    trained = load_model(tmp_path / "x.safetensors")
    images = torch.randn(2, 3, 8, 8)
    assert torch.equal(trained.network(images), network.eval()(images))
    assert not trained.network.training
    assert trained.spec == spec
    assert trained.header.step == 3


def test_run_without_weights_says_how_to_go_on(tmp_path: Path, spec: Spec) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.publish(dump_spec(spec))
    with pytest.raises(UsageError) as raised:
        load_model(run.path)
    assert str(raised.value).splitlines() == [
        f"{run.path} has no weights yet: they are saved by checkpoints, by an evaluation on "
        "validation images, and at the end of the training",
        "to go on, with the --data-dir and --plugin that it was started with: "
        f"resnet-build train --resume {run.path}",
    ]


@pytest.mark.parametrize("ema", ["null", "{decay: 0.5}"])
def test_stopped_run_is_used_by_its_newest_checkpoint(ema: str, tmp_path: Path) -> None:
    values = ("data.validation=0", "train.epochs=1", "train.checkpoint_every={steps: 2}")
    flags = [word for value in (*values, f"train.ema={ema}") for word in ("--set", value)]
    run = RunDirectory(tmp_path / "run")
    assert call("train", write_tiny(tmp_path), "--out", run.path, *flags).exit_code == 0
    finished = load_model(run.last)
    for file in (run.best, run.last, run.result):
        file.unlink()
    newest = run.checkpoint(5)
    trained = load_model(run.path)
    assert trained.path == newest
    assert trained.notices == (
        f"{run.path} has no best weights yet; its newest checkpoint is used: {newest}",
    )
    assert trained.header == finished.header.model_copy(update={"metrics": {}})
    for name, tensor in finished.network.state_dict().items():
        assert torch.equal(trained.network.state_dict()[name], tensor), name
    assert load_model(newest).notices == ()
    result = call("evaluate", run.path)
    assert (result.exit_code, result.stderr) == (0, f"{trained.notices[0]}\n")
    # The checkpoint has the spec of its network, as other files of weights have.
    assert call("summary", newest).stdout == call("summary", tmp_path / "tiny.yaml").stdout
    # A damaged checkpoint is passed over, as by a resume.
    newest.write_bytes(newest.read_bytes()[:-9])
    assert load_model(run.path).path == run.checkpoint(4)
    with pytest.raises(CheckpointError, match=r"only resumes its run.* best\.safetensors$"):
        read_foreign(run.checkpoint(4))


def test_images_that_are_normalised_otherwise_are_refused(tmp_path: Path, spec: Spec) -> None:
    classes = tuple(f"class_{number}" for number in range(4))
    known = header(spec).model_copy(update={"classes": classes})
    save_weights(tmp_path / "x.safetensors", build(spec).state_dict(), known)
    trained, device = load_model(tmp_path / "x.safetensors"), torch.device("cpu")
    splits = load_data(spec)
    assert splits.test is not None
    other = SplitImages("test", splits.test, classes, splits.mean, splits.std)
    with pytest.raises(UsageError, match=r"needs images of mean \(0\.5, .*load_split"):
        evaluate_split(trained, other, device=device)
    assert evaluate_split(trained, load_split(trained, "test"), device=device).images == 40


def test_weights_of_another_network_are_refused(tmp_path: Path, spec: Spec) -> None:
    other = build(read_spec("resnet20_digits"))
    save_weights(tmp_path / "x.safetensors", other.state_dict(), header(spec))
    with pytest.raises(CheckpointError) as raised:
        load_model(tmp_path / "x.safetensors")
    assert str(raised.value) == (
        f"{tmp_path / 'x.safetensors'}: the weights are not of its spec: "
        "'bn1.bias' has shape [16] there, shape [4] here"
    )


def test_network_that_the_file_has_no_weights_for_takes_no_memory(
    tmp_path: Path, spec: Spec
) -> None:
    """It would take 770 GB."""
    text = dump_spec(spec).replace("channels: 4, blocks: 1", "channels: 16384, blocks: 40")
    large = header(spec).model_copy(update={"spec": text})
    save_weights(tmp_path / "x.safetensors", build(spec).state_dict(), large)
    with pytest.raises(CheckpointError, match=r"not of its spec: 'fc\.weight' has shape"):
        load_model(tmp_path / "x.safetensors")


@pytest.mark.parametrize("text", ["resnet20", "[1]", "", "/x.yaml"])
def test_header_whose_spec_is_no_mapping_is_damaged(text: str, tmp_path: Path, spec: Spec) -> None:
    other = header(spec).model_copy(update={"spec": text})
    save_weights(tmp_path / "x.safetensors", build(spec).state_dict(), other)
    with pytest.raises(CheckpointError, match="its header is damaged: the spec is no mapping"):
        load_model(tmp_path / "x.safetensors")


def test_plugin_named_in_weights_needs_consent(tmp_path: Path, spec: Spec) -> None:
    canary = tmp_path / "canary"
    plugin = tmp_path / "mine.py"
    code = f"from pathlib import Path\nPath({str(canary)!r}).touch()\n"
    plugin.write_text(code, encoding="utf-8")
    needs = spec.model_copy(update={"plugins": (str(plugin),)})
    save_weights(tmp_path / "x.safetensors", build(spec).state_dict(), header(needs))
    with pytest.raises(SpecError, match="--plugin"):
        load_model(tmp_path / "x.safetensors")
    assert not canary.exists()
    load_model(tmp_path / "x.safetensors", plugins=[str(plugin)])
    assert canary.exists()

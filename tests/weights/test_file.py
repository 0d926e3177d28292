"""Weights with all that is needed to use them, in one file."""

import pickle
from pathlib import Path

import pytest
import safetensors
import torch
from pydantic import ValidationError
from torch import Tensor

from resnet_builder.errors import CheckpointError, NonFiniteError, UsageError
from resnet_builder.runs.checkpoint import Checkpoint, checkpoint_path, save_checkpoint
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import package_version
from resnet_builder.runs.tensor_files import write_tensors
from resnet_builder.spec.schema import CenterCrop, Resize, ToRgb
from resnet_builder.weights.file import Origin, WeightsHeader, read_weights, save_weights

HEADER = WeightsHeader(
    spec='name: "tiny"\n',
    classes=("Katze", "犬"),
    mean=(0.1, 1 / 3, 0.5),
    std=(0.2, 0.25, 0.3),
    preprocess=(
        ToRgb(type="to_rgb"),
        Resize(type="resize", size=40),
        CenterCrop(type="center_crop", size=32),
    ),
    metrics={"val.top1": 0.9251, "test.top1": 1 / 3},
    step=64_000,
)

IMPORTED = WeightsHeader(
    spec='name: "tiny"\n',
    mean=(0.1,),
    std=(0.2,),
    source=Origin(file="model.th", layout="akamaster"),
)


def weights() -> dict[str, Tensor]:
    return {
        "conv1.weight": torch.randn(4, 3, 3, 3).to(memory_format=torch.channels_last),
        "bn1.num_batches_tracked": torch.tensor(7),
        "layer1.0.downsample.0.weight": torch.randn(4, 4, 1, 1),
    }


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "best.safetensors"


def test_weights_and_header_are_read_as_they_were_saved(path: Path) -> None:
    saved = weights()
    save_weights(path, saved, HEADER)
    read, header = read_weights(path)
    assert header == HEADER
    assert header.version == package_version()
    assert read.keys() == saved.keys()
    for name, tensor in saved.items():
        assert read[name].dtype == tensor.dtype
        assert torch.equal(read[name], tensor)


def test_what_is_not_known_of_another_program_s_weights_is_left_out(path: Path) -> None:
    header = IMPORTED.model_copy(update={"mean": None, "std": None})
    save_weights(path, weights(), header)
    _, read = read_weights(path)
    assert read == header
    assert (read.classes, read.mean, read.std, read.step) == (None, None, None, None)
    assert read.source == Origin(file="model.th", layout="akamaster")


def test_equal_weights_make_equal_files(path: Path) -> None:
    saved = weights()
    save_weights(path, saved, HEADER)
    first = path.read_bytes()
    save_weights(path, dict(reversed(saved.items())), HEADER)
    assert path.read_bytes() == first


def test_other_programs_find_torchvisions_names(path: Path) -> None:
    saved = weights()
    save_weights(path, saved, HEADER)
    with safetensors.safe_open(path, "pt") as file:
        assert set(file.keys()) == saved.keys()
        assert torch.equal(file.get_tensor("conv1.weight"), saved["conv1.weight"])


def test_row51_weights_that_are_not_finite_replace_nothing(path: Path) -> None:
    save_weights(path, weights(), HEADER)
    with pytest.raises(NonFiniteError, match=r"'fc\.bias'"):
        save_weights(path, {"fc.bias": torch.tensor([float("inf")])}, HEADER)
    assert read_weights(path)[1] == HEADER


def test_row52_header_that_could_not_be_read_again_is_not_made() -> None:
    fields = HEADER.model_dump(exclude={"metrics"})
    with pytest.raises(ValidationError, match="finite number"):
        WeightsHeader(**fields, metrics={"val.loss": float("nan")})


def test_missing_file_is_named(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"best\.safetensors: there is no such file"):
        read_weights(path)


@pytest.mark.parametrize("sixteenth", range(16), ids=lambda part: f"row65-{part}/16")
def test_file_that_is_cut_short_is_refused(sixteenth: int, path: Path) -> None:
    save_weights(path, weights(), HEADER)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * sixteenth // 16])
    with pytest.raises(CheckpointError, match=r"best\.safetensors: its? "):
        read_weights(path)


def test_row65_damage_anywhere_is_found(path: Path) -> None:
    save_weights(path, weights(), HEADER)
    sound = path.read_bytes()
    for position in range(0, len(sound), 7):
        damaged = bytearray(sound)
        damaged[position] ^= 4
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            read_weights(path)


def test_other_programs_files_are_refused(path: Path) -> None:
    path.write_bytes(pickle.dumps({"conv1.weight": [1.0]}))
    with pytest.raises(CheckpointError, match="no sound safetensors file"):
        read_weights(path)
    safetensors.torch.save_file({"conv1.weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match="resnet-builder did not write it"):
        read_weights(path)


def test_checkpoint_is_not_taken_for_weights(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run")
    run.checkpoints.mkdir()
    save_checkpoint(run, Checkpoint(3, {"model/fc.bias": torch.ones(2)}, {}), keep=2)
    with pytest.raises(CheckpointError, match="it holds no weights that a run delivered"):
        read_weights(checkpoint_path(run, 3))


def with_header(path: Path, text: str) -> None:
    """Write weights whose bytes hold together, but whose header is as given."""
    write_tensors(path, weights(), {"resnet_builder": text})


def test_row69_newer_header_asks_to_upgrade(path: Path) -> None:
    with_header(path, '{"format": 2, "all": "is different"}')
    with pytest.raises(UsageError, match=r"newer resnet-builder \(schema 2; .* upgrade"):
        read_weights(path)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "Invalid JSON"),
        ("{}", "format: Field required"),
        ('{"format": 1}', "spec: Field required"),
        (HEADER.model_dump_json().replace("to_rgb", "to_cmyk"), r"preprocess\.0: .*'to_cmyk'"),
        (HEADER.model_dump_json(exclude={"classes"}), "classes: Field required"),
        (HEADER.model_dump_json(exclude={"step"}), "step: Field required"),
        (IMPORTED.model_dump_json(exclude={"std"}), "std: Field required"),
        (IMPORTED.model_dump_json(exclude={"mean"}), "mean: Field required"),
    ],
)
def test_header_that_says_too_little_is_named(text: str, reason: str, path: Path) -> None:
    with_header(path, text)
    with pytest.raises(CheckpointError, match=f"its header is damaged: {reason}"):
        read_weights(path)

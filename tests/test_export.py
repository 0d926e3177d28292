"""Exported files: what they compute, what their metadata say, and when nothing is written."""

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import onnxruntime
import pytest
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

import resnet_builder
from resnet_builder.blocks.interfaces import BLOCKS
from resnet_builder.builder import build
from resnet_builder.errors import ExportError, NonFiniteError, UsageError
from resnet_builder.export import FORMATS, export
from resnet_builder.inference import TrainedModel
from resnet_builder.parts import resolve
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import Resize, Spec
from resnet_builder.weights.file import Origin, WeightsHeader
from tests.networks import cifar_spec, imagenet_spec, random_images, randomise

CLASSES = tuple(f"class {number}" for number in range(10))
MEAN, STD = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
TOLERANCE = 1e-4
METADATA = (
    *("classes", "mean", "std", "preprocess", "image_size"),
    *("input", "output", "spec", "exported_by"),
)

SMALL: dict[str, Any] = {"widths": (8, 16), "image_size": 12}
GROUPED = {"type": "bottleneck", "groups": 4, "width_per_group": 32}
BARE = {"type": "conv3x3", "channels": 8, "bare": True}

MIXED = cifar_spec(
    block="preact_basic",
    stem=BARE,
    image_size=12,
    stages=[
        {"channels": 8, "blocks": 1, "attention": {"type": "se", "reduction": 4}},
        {"channels": 16, "blocks": 1, "stride": 2},
        {
            "channels": 16,
            "blocks": 1,
            "stride": 2,
            "block": {**GROUPED, "type": "preact_bottleneck"},
            "attention": "eca",
            "shortcut": "projection",
        },
    ],
)
"""Many of the parts, in one small network."""

SEVERAL: dict[str, Spec] = {
    "pre-activation": cifar_spec(block="preact_basic", stem=BARE, **SMALL),
    "squeeze and excitation": cifar_spec(attention={"type": "se", "reduction": 4}, **SMALL),
    "efficient channel attention": cifar_spec(attention="eca", **SMALL),
    "groups": cifar_spec(block=GROUPED, shortcut="projection", **SMALL),
    "padded at the end": cifar_spec(shortcut={"type": "pad", "position": "end"}, **SMALL),
    "padded averages": cifar_spec(shortcut={"type": "pad", "subsample": "average"}, **SMALL),
    "average projection": cifar_spec(shortcut="average_projection", **{**SMALL, "image_size": 13}),
    "no shortcuts": cifar_spec(shortcut="none", **SMALL),
    "group norm": cifar_spec(norm={"type": "group_norm", "groups": 4}, **SMALL),
    "instance norm": cifar_spec(norm="instance_norm", **SMALL),
    "frozen batch norm": cifar_spec(norm="frozen_batch_norm", **SMALL),
    "blur": cifar_spec(shortcut="projection", antialias="blur", **SMALL),
    "drop path and gelu": cifar_spec(2, activation="gelu", drop_path=0.3, **SMALL),
    "grey": cifar_spec(in_channels=1, **SMALL),
    "deep stem": imagenet_spec(
        (1, 1), "bottleneck", stem="deep", widths=(8, 16), classes=10, image_size=32
    ),
    "resnet20": cifar_spec(3),
}

CI = {"pre-activation", "drop path and gelu"}
"""Networks that between them have most kinds of operations."""

REAL: dict[str, Spec] = {
    "resnet50 at 64 pixels": imagenet_spec((3, 4, 6, 3), "bottleneck", image_size=64),
    "preact110": cifar_spec(18, block="preact_basic", stem={**BARE, "channels": 16}),
    "seresnet50 at 64 pixels": imagenet_spec(
        (3, 4, 6, 3), "bottleneck", attention="se", image_size=64
    ),
}


def trained(spec: Spec, network: Any = None) -> TrainedModel:
    """Build a network in which nothing is neutral by chance."""
    spec = resolve(spec)
    if network is None:
        network = build(spec, seed=0)
        randomise(network)
    header = WeightsHeader(spec=dump_spec(spec), classes=CLASSES, mean=MEAN, std=STD, step=3)
    return TrainedModel(Path("best.safetensors"), network.eval(), spec, header)


def logits_of(path: Path, spec: Spec) -> Callable[[Tensor], Tensor]:
    """Load an exported file as its readers do."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        return lambda images: torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if path.suffix == ".pt2":
        return torch.export.load(path).module()
    network = build(spec)
    network.load_state_dict(safetensors.torch.load_file(path))
    return network.eval()


@torch.no_grad()
def assert_computes(path: Path, subject: TrainedModel) -> None:
    """Check that a file computes a network's logits, in batches of several sizes."""
    compute = logits_of(path, subject.spec)
    for batch in (1, 7, 3):
        images = random_images(batch, *subject.spec.model.image_shape)
        expected = subject.network(images)
        difference = (compute(images) - expected).abs().max() / expected.abs().max()
        assert difference <= (0.0 if path.suffix == ".safetensors" else TOLERANCE), batch


@pytest.fixture(scope="module")
def subject() -> TrainedModel:
    return trained(MIXED)


@pytest.mark.parametrize(
    "format", ["safetensors", "pt2", pytest.param("onnx", marks=pytest.mark.ci)]
)
def test_file_computes_the_networks_logits_and_says_how_it_is_used(
    format: str, subject: TrainedModel, tmp_path: Path
) -> None:
    [path] = export(subject, tmp_path / f"net.{format}").files
    assert_computes(path, subject)
    content = path.read_bytes()
    if format == "onnx":
        model = onnx.load(path)
        onnx.checker.check_model(model, full_check=True)
        sizes = {
            value.name: [
                size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim
            ]
            for value in (*model.graph.input, *model.graph.output)
        }
        assert sizes == {"images": ["batch", 3, 12, 12], "logits": ["batch", 10]}
        texts = {text.key: text.value for text in model.metadata_props}
    elif format == "pt2":
        assert b"graph_module" in content, "the archive is not compressed"
        texts = dict.fromkeys(METADATA, "")
        torch.export.load(path, extra_files=texts)
    else:
        with safetensors.safe_open(path, "pt") as file:
            texts = file.metadata()
    assert {name: texts[name] for name in METADATA} == {
        "classes": json.dumps(CLASSES),
        "mean": json.dumps(MEAN),
        "std": json.dumps(STD),
        "preprocess": "[]",
        "image_size": "12",
        "input": "float32 (batch, 3, 12, 12): pixels from 0 to 1, minus mean, divided by std",
        "output": "logits",
        "spec": subject.header.spec,
        "exported_by": f"resnet-builder {resnet_builder.__version__}",
    }
    for module in (resnet_builder, torch):
        folder = str(Path(str(module.__file__)).parent)
        assert folder.encode() not in content, "it names this machine's folders"


@pytest.mark.parametrize(
    "spec",
    [
        *(
            pytest.param(spec, id=name, marks=pytest.mark.ci if name in CI else pytest.mark.slow)
            for name, spec in {**SEVERAL, **REAL}.items()
        ),
    ],
)
@pytest.mark.parametrize("format", FORMATS)
def test_networks_of_all_parts_are_exported(format: str, spec: Spec, tmp_path: Path) -> None:
    subject = trained(spec)
    path = tmp_path / f"net.{format}"
    report = export(subject, path)
    assert report.difference <= (0.0 if format == "safetensors" else TOLERANCE)
    assert report.bytes == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    assert_computes(path, subject)


@pytest.mark.ci
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_file_takes_pixels_of_any_size_and_gives_probabilities(format: str, tmp_path: Path) -> None:
    subject = trained(cifar_spec(1, widths=(4, 8), image_size=8))
    path = tmp_path / f"net.{format}"
    opset = 20 if format == "onnx" else None
    report = export(
        subject,
        path,
        normalize=True,
        softmax=True,
        dynamic=["height", "batch", "width"],
        opset=opset,
    )
    assert (report.mean, report.std, report.output) == (None, None, "probabilities")
    assert report.input == (
        "uint8 (batch, 3, height, width) of 3 pixels or more: pixels from 0 to 255; the file "
        "normalises them"
    )
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    compute = logits_of(path, subject.spec)
    for shape in ((1, 3, 8, 8), (5, 3, 3, 21), (2, 3, 40, 6)):
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
        with torch.no_grad():
            wanted = subject.network((pixels / 255 - mean) / std).softmax(1)
        torch.testing.assert_close(compute(pixels), wanted, rtol=1e-4, atol=1e-5)
    if format == "onnx":
        model = onnx.load(path)
        assert [one.version for one in model.opset_import if not one.domain] == [opset]
        texts = {entry.key: entry.value for entry in model.metadata_props}
        (taken,), (given,) = model.graph.input, model.graph.output
        assert (taken.name, given.name) == ("images", "probabilities")
        assert taken.type.tensor_type.elem_type == onnx.TensorProto.UINT8
        sides = [side.dim_param or side.dim_value for side in taken.type.tensor_type.shape.dim]
        assert sides == ["batch", 3, "height", "width"]
        assert (texts["input"], texts["output"]) == (report.input, "probabilities")
        assert not {"mean", "std"} & set(texts)


@pytest.mark.slow
def test_onnx_file_of_fixed_shape_takes_one_image(subject: TrainedModel, tmp_path: Path) -> None:
    report = export(subject, tmp_path / "net.onnx", dynamic=[])
    assert report.input.startswith("float32 (1, 3, 12, 12): ")
    (taken,) = onnx.load(tmp_path / "net.onnx").graph.input
    assert [side.dim_value for side in taken.type.tensor_type.shape.dim] == [1, 3, 12, 12]


@pytest.mark.slow
@pytest.mark.parametrize("spec", SEVERAL.values(), ids=SEVERAL)
@pytest.mark.parametrize("format", ["pt2", "onnx"])
def test_networks_of_all_parts_take_images_of_any_size(
    format: str, spec: Spec, tmp_path: Path
) -> None:
    export(trained(spec), tmp_path / f"net.{format}", dynamic=["batch", "height", "width"])


@pytest.mark.parametrize(
    ("format", "options", "message"),
    [
        ("safetensors", {"normalize": True}, "--normalize: no effect on a file of the format safe"),
        ("safetensors", {"softmax": True, "dynamic": []}, "--softmax, --dynamic: no effect on"),
        ("pt2", {"opset": 18}, "--opset: no effect on a file of the format pt2"),
        ("pt2", {"dynamic": ["depth"]}, "no dimension is named depth; there are batch, height, w"),
    ],
)
def test_option_without_effect_is_refused(
    format: str, options: Any, message: str, subject: TrainedModel, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=message):
        export(subject, tmp_path / f"net.{format}", **options)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.ci
def test_probabilities_of_several_labels_are_each_a_sigmoid(
    subject: TrainedModel, tmp_path: Path
) -> None:
    several = subject.header.model_copy(update={"multi_label": True})
    export(replace(subject, header=several), tmp_path / "net.pt2", softmax=True)
    images = random_images(2, 3, 12, 12)
    with torch.no_grad():
        wanted = subject.network(images).sigmoid()
        found = torch.export.load(tmp_path / "net.pt2").module()(images)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)


def test_file_cannot_normalise_if_the_weights_do_not_say_how(
    subject: TrainedModel, tmp_path: Path
) -> None:
    origin = Origin(file="theirs.pth", layout="torchvision")
    header = WeightsHeader(spec=subject.header.spec, source=origin)
    with pytest.raises(UsageError, match="does not say how images are normalised"):
        export(replace(subject, header=header), tmp_path / "net.pt2", normalize=True)


@pytest.mark.slow
def test_opset_that_torch_cannot_write_is_an_error(subject: TrainedModel, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"the network cannot be exported to onnx: .*opset"):
        export(subject, tmp_path / "net.onnx", opset=99)
    assert list(tmp_path.iterdir()) == []


def test_metadata_have_the_preprocessing_and_leave_unknown_statistics_out(
    subject: TrainedModel, tmp_path: Path
) -> None:
    header = WeightsHeader(
        spec=subject.header.spec,
        preprocess=(Resize(type="resize", size=12),),
        source=Origin(file="theirs.pth", layout="torchvision"),
    )
    report = export(replace(subject, header=header), tmp_path / "net.bin", format="safetensors")
    assert report.input.endswith("normalised as for training; its weights do not say how")
    with safetensors.safe_open(tmp_path / "net.bin", "pt") as file:
        texts = file.metadata()
    assert not {"classes", "mean", "std"} & set(texts)
    (step,) = json.loads(texts["preprocess"])
    assert (step["type"], step["size"], step["interpolation"]) == ("resize", 12, "bilinear")


def test_weights_of_any_type_and_layout_are_exported_in_fp32(
    subject: TrainedModel, tmp_path: Path
) -> None:
    """The network stays as it is, and torch's random numbers too."""
    network: Any = build(subject.spec)
    network.load_state_dict(subject.network.state_dict())
    network.double().to(memory_format=torch.channels_last).train()
    before = torch.get_rng_state()
    report = export(replace(subject, network=network), tmp_path / "net.safetensors")
    assert report.difference == 0
    export(subject, tmp_path / "plain.safetensors")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
    assert network.training
    assert network.conv1.weight.dtype == torch.float64
    assert torch.equal(torch.get_rng_state(), before)


def test_file_that_appears_meanwhile_is_not_overwritten(
    subject: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one beside it left, where there are two."""
    path = tmp_path / "net.safetensors"
    write = FORMATS["safetensors"].write

    def write_two(draft: Path, *arguments: Any) -> None:
        write(draft, *arguments)
        draft.with_name(f"{draft.name}.data").write_bytes(b"weights")
        path.write_bytes(b"theirs")

    monkeypatch.setitem(FORMATS, "safetensors", replace(FORMATS["safetensors"], write=write_two))
    with pytest.raises(UsageError, match=r"net.safetensors exists"):
        export(subject, path)
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_file_system_without_links_gets_the_file(
    subject: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    export(subject, tmp_path / "net.safetensors")
    assert [path.name for path in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.parametrize(
    ("format", "change"),
    [
        ("safetensors", lambda logits: logits * (1 + 1e-6)),
        ("pt2", lambda logits: logits * (1 + 1.1e-4)),
        ("safetensors", lambda logits: logits * math.nan),
        ("safetensors", lambda logits: logits[:1]),
        ("safetensors", lambda logits: logits[:, :9]),
    ],
    ids=["a trifle", "a little", "NaN", "one image", "fewer classes"],
)
def test_file_that_computes_something_else_is_not_published(
    format: str,
    change: Callable[[Tensor], Tensor],
    subject: TrainedModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kind = FORMATS[format]

    def load(path: Path, spec: Spec) -> Callable[[Tensor], Tensor]:
        compute = kind.load(path, spec)
        return lambda images: change(compute(images))

    monkeypatch.setitem(FORMATS, format, replace(kind, load=load))
    with pytest.raises(ExportError, match="its logits differ from the network's by"):
        export(subject, tmp_path / f"net.{format}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bias", [0.0, math.inf])
def test_logits_of_zero_are_exported_and_infinite_ones_are_an_error(
    bias: float, subject: TrainedModel, tmp_path: Path
) -> None:
    network: Any = build(subject.spec)
    nn.init.zeros_(network.fc.weight)
    nn.init.constant_(network.fc.bias, bias)
    model = replace(subject, network=network)
    if bias == 0:
        assert export(model, tmp_path / "net.safetensors").difference == 0
        return
    with pytest.raises(NonFiniteError, match=r"best.safetensors: its logits of random images"):
        export(model, tmp_path / "net.safetensors")
    assert list(tmp_path.iterdir()) == []


class Branching(nn.Module):
    """Block whose computation depends on the images."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Any) -> None:
        super().__init__()
        self.out_channels = in_channels

    def zero_residual(self) -> None:
        """Do nothing."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_block_that_cannot_be_exported_is_an_error_in_a_line(tmp_path: Path) -> None:
    with BLOCKS.temporary("branching", Branching):
        spec = resolve(cifar_spec(block="branching", widths=(4,), image_size=8))
        with pytest.raises(ExportError, match="the network cannot be exported to pt2: ") as caught:
            export(trained(spec, build(spec, seed=0)), tmp_path / "net.pt2")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_weights_too_large_for_one_onnx_file_are_beside_it(
    subject: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ONNX does so by itself with more than 1.5 GB of them; here it is made to."""
    save = torch.onnx.ONNXProgram.save

    def save_apart(program: torch.onnx.ONNXProgram, path: Path) -> None:
        save(program, path, external_data=True)

    monkeypatch.setattr(torch.onnx.ONNXProgram, "save", save_apart)
    report = export(subject, tmp_path / "net.onnx")
    assert [path.name for path in report.files] == ["net.onnx", "net.onnx.data"]
    assert sorted(tmp_path.iterdir()) == sorted(report.files)
    assert report.bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert_computes(tmp_path / "net.onnx", subject)

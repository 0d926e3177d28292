"""Errors in a plugin's code: its file and line are named, with exit code 2, in every command."""

from pathlib import Path

import pytest

from tests.cli.experiments import call, write_tiny

BLOCK = """
from dataclasses import replace

import torch
from torch import nn
from resnet_builder.blocks.interfaces import BLOCKS, HEADS, NORMS, STEMS
from resnet_builder.data.interfaces import AUGMENTATIONS, DATASETS, DatasetInfo

CALLS = []

class Weird(BaseException):
    pass

class Silent(Exception):
    def __str__(self):
        raise self

class Backward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        {backward}
        return gradient

@BLOCKS.register("block_{name}")
class Block(nn.Module):
    def __init__(self, in_channels, channels, *, stride, shortcut):
        super().__init__()
        {build}
        self.out_channels = channels
        self.conv = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.downsample = shortcut(in_channels, channels, stride)

    def forward(self, x):
        {forward}
        return Backward.apply(self.conv(x)) + self.downsample(x)

@STEMS.register("stem_{name}")
def stem(in_channels, *, channels: int = 4):
    return {{"conv1": nn.Conv2d(in_channels, channels, 3)}}

@HEADS.register("head_{name}")
def head(in_channels, num_classes):
    return None

@NORMS.register("norm_{name}")
def norm(channels):
    raise KeyError("no norm")

@DATASETS.register("data_{name}")
class Data:
    info = DatasetInfo(4, channels=3, image_size=8)

    def load(self, context):
        {load}

@DATASETS.register("bare_{name}")
class Bare:
    def load(self, context):
        raise NotImplementedError

@AUGMENTATIONS.register("augment_{name}")
class Augment:
    works_on = "any"

    def __call__(self, batch, draws):
        {augment}

class Crop:
    def __call__(self, image, index):
        {crop}

@AUGMENTATIONS.register("crop_{name}")
class AtReading:
    works_on = "pixels"

    def __call__(self, batch, draws):
        return batch

    def for_epoch(self, seed, epoch, operation):
        return Crop()

@AUGMENTATIONS.register("forgetful_{name}")
class Forgetful:
    def __call__(self, batch, draws):
        return batch
"""
IN_VALIDATE, IN_TRAIN = ("validate", "train"), ("train",)


@pytest.mark.parametrize(
    ("name", "code", "change", "found"),
    [
        ("build", {"build": "self.missing"}, "model.block=block_build", IN_VALIDATE),
        ("forward", {"forward": "assert x.dim() == 5"}, "model.block=block_forward", IN_VALIDATE),
        (
            "training",
            {"forward": "assert not self.training, 'cannot be trained'"},
            "model.block=block_training",
            IN_VALIDATE,
        ),
        ("backward", {"backward": "{}['a']"}, "model.block=block_backward", IN_VALIDATE),
        (
            "later",
            {"forward": "CALLS.append(x.is_meta); assert CALLS.count(False) < 3"},
            "model.block=block_later",
            IN_TRAIN,
        ),
        ("stem", {}, "model.stem=stem_stem", IN_VALIDATE),
        ("head", {}, "model.head=head_head", IN_VALIDATE),
        ("norm", {}, "model.norm=norm_norm", IN_VALIDATE),
        ("exit", {"forward": "raise SystemExit"}, "model.block=block_exit", IN_VALIDATE),
        ("weird", {"forward": "raise Weird(chr(27))"}, "model.block=block_weird", IN_VALIDATE),
        ("silent", {"forward": "raise Silent"}, "model.block=block_silent", IN_VALIDATE),
        ("width", {"build": "channels = 'x'"}, "model.block=block_width", IN_VALIDATE),
        ("data", {}, "data.dataset=data_data", IN_TRAIN),
        ("nothing", {"load": "return None"}, "data.dataset=data_nothing", IN_TRAIN),
        ("pipe", {"load": "raise BrokenPipeError"}, "data.dataset=data_pipe", IN_TRAIN),
        ("stop", {"load": "raise StopIteration"}, "data.dataset=data_stop", IN_TRAIN),
        ("none", {"augment": "return None"}, "data.augment=[augment_none]", IN_TRAIN),
        (
            "double",
            {"augment": "return replace(batch, images=batch.images.double())"},
            "data.augment=[augment_double]",
            IN_TRAIN,
        ),
        (
            "fewer",
            {"augment": "return replace(batch, images=batch.images[:3])"},
            "data.augment=[augment_fewer]",
            IN_TRAIN,
        ),
        ("crop", {"crop": "return image.widht"}, "data.augment=[crop_crop]", IN_TRAIN),
        ("bare", {}, "data.dataset=bare_bare", IN_VALIDATE),
        ("augment", {}, "data.augment=[augment_augment]", IN_TRAIN),
        ("forgetful", {}, "data.augment=[forgetful_forgetful]", IN_VALIDATE),
    ],
)
def test_error_in_a_plugin_names_its_file_and_line(
    name: str, code: dict[str, str], change: str, found: tuple[str, ...], folder: Path
) -> None:
    passed = dict.fromkeys(("build", "forward", "backward", "crop"), "pass")
    own = {"load": "open('nowhere.csv')", "augment": "return batch.imagess"}
    lines = {**passed, **own, **code}
    (folder / f"mine_{name}.py").write_text(BLOCK.format(name=name, **lines))
    spec = write_tiny(folder)
    for command in found:
        result = call(command, spec, "--plugin", f"mine_{name}.py", "--set", change)
        assert result.exit_code == 2, result.stderr
        assert f"mine_{name}.py" in result.stderr
        assert " line " in result.stderr or f"mine_{name}.py:" in result.stderr
        assert "bug of resnet-build" not in result.stderr
        assert result.stderr.replace("\n", "").isprintable()


@pytest.mark.parametrize(
    "line", ["raise SystemExit(0)", "class E(Exception):\n    __str__ = None\nraise E"]
)
def test_plugin_that_cannot_be_imported_is_named(line: str, folder: Path) -> None:
    (folder / "mine.py").write_text(line)
    result = call("list", "parts", "--plugin", "mine.py")
    assert result.exit_code == 2
    assert f"cannot import '{folder / 'mine.py'}', line " in result.stderr


def test_closed_output_alone_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr("resnet_builder.spec.bundled.bundled_names", broken)
    result = call("list", "specs")
    assert (result.exit_code, result.stderr) == (7, "error: [Errno 32] Broken pipe\n")

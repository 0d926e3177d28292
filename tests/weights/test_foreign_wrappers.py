"""The state dict is found in whatever a training script saved around it."""

import argparse
import collections
import pathlib
import sys
from itertools import accumulate
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

from resnet_builder.errors import CheckpointError, UsageError
from resnet_builder.weights.foreign import ForeignWeights, read_foreign

NAMES = ("conv1.weight", "bn1.running_mean", "bn1.num_batches_tracked", "layer1.0.bias")


def state_dict(value: float = 1.0, prefix: str = "") -> dict[str, Tensor]:
    tensors = (torch.full((2, 3), value), torch.zeros(2), torch.tensor(7), torch.full((2,), value))
    return {prefix + name: tensor for name, tensor in zip(NAMES, tensors, strict=True)}


def optimizer() -> dict[str, Any]:
    return {
        "state": {0: {"momentum_buffer": torch.ones(2, 3)}},
        "param_groups": [{"lr": 0.1, "nesterov": False, "foreach": None, "params": [0]}],
    }


def scheduler() -> dict[str, Any]:
    """As torch's MultiStepLR describes itself."""
    return {"milestones": collections.Counter([3, 5]), "gamma": 0.1, "base_lrs": [0.1]}


def options() -> argparse.Namespace:
    return argparse.Namespace(
        lr=0.1, device=torch.device("cpu"), output=pathlib.Path("out"), size=torch.Size([2])
    )


def read(tmp_path: Path, content: object, **options: Any) -> ForeignWeights:
    path = tmp_path / "checkpoint.pth"
    torch.save(content, path)
    return read_foreign(path, **options)


def check(weights: ForeignWeights, value: float = 1.0) -> None:
    assert tuple(weights.tensors) == NAMES
    for name, expected in state_dict(value).items():
        assert torch.equal(weights.tensors[name], expected), name


CODEBASES: dict[str, tuple[Any, tuple[str, ...], tuple[str, ...]]] = {
    "akamaster-model": (
        lambda: {"state_dict": state_dict(prefix="module."), "best_prec1": 91.2},
        ("state_dict", "module."),
        ("best_prec1",),
    ),
    "akamaster-checkpoint": (
        lambda: {
            "epoch": 3,
            "state_dict": state_dict(prefix="module."),
            "best_prec1": torch.tensor(91.2),
        },
        ("state_dict", "module."),
        ("epoch", "best_prec1"),
    ),
    "chenyaofo, kellerjordan, weiaicunzai": (state_dict, (), ()),
    "hysts": (
        lambda: {
            "model": state_dict(),
            "optimizer": optimizer(),
            "scheduler": scheduler(),
            "epoch": 1,
            "global_step": 2,
            "config": {"model": {"name": "resnet"}},
        },
        ("model",),
        ("optimizer", "scheduler", "epoch", "global_step", "config"),
    ),
    "kuangliu-gpu": (
        lambda: {"net": state_dict(prefix="module."), "acc": numpy.float64(95.2), "epoch": 1},
        ("net", "module."),
        ("acc", "epoch"),
    ),
    "kuangliu-cpu": (lambda: {"net": state_dict(), "acc": 95.2}, ("net",), ("acc",)),
    "mmpretrain": (
        lambda: {
            "meta": {"epoch": 1, "cfg": "text", "mmengine_version": "0.10.4"},
            "state_dict": state_dict(prefix="backbone."),
        },
        ("state_dict", "backbone."),
        ("meta",),
    ),
    "pycls": (
        lambda: {
            "epoch": 1,
            "test_err": 5.0,
            "ema_err": 4.0,
            "model_state": state_dict(),
            "ema_state": state_dict(2.0),
            "optimizer_state": optimizer(),
            "cfg": "text",
        },
        ("model_state",),
        ("epoch", "test_err", "ema_err", "ema_state", "optimizer_state", "cfg"),
    ),
    "timm": (
        lambda: {
            "epoch": 1,
            "arch": "resnet18",
            "state_dict": state_dict(),
            "optimizer": optimizer(),
            "version": 2,
            "args": options(),
            "state_dict_ema": state_dict(2.0),
            "metric": 76.5,
        },
        ("state_dict",),
        ("epoch", "arch", "optimizer", "version", "args", "state_dict_ema", "metric"),
    ),
    "timm-compiled": (
        lambda: {"state_dict": state_dict(prefix="_orig_mod.module.")},
        ("state_dict", "_orig_mod.", "module."),
        (),
    ),
    "torchvision": (
        lambda: {
            "model": state_dict(),
            "optimizer": optimizer(),
            "lr_scheduler": scheduler(),
            "epoch": 1,
            "args": options(),
        },
        ("model",),
        ("optimizer", "lr_scheduler", "epoch", "args"),
    ),
    "lightning": (
        lambda: {
            "epoch": 1,
            "pytorch-lightning_version": "2.5",
            "state_dict": state_dict(prefix="model."),
            "callbacks": {},
        },
        ("state_dict", "model."),
        ("epoch", "pytorch-lightning_version", "callbacks"),
    ),
}


@pytest.mark.parametrize("codebase", CODEBASES)
def test_codebases_checkpoint_is_read(codebase: str, tmp_path: Path) -> None:
    content, wrappers, ignored = CODEBASES[codebase]
    weights = read(tmp_path, content())
    check(weights)
    assert weights.wrappers == wrappers
    assert weights.ignored == ignored
    assert not weights.averaged


AVERAGES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "timm": (
        {"state_dict": state_dict(), "state_dict_ema": state_dict(2.0)},
        ("state_dict_ema",),
    ),
    "torchvision": (
        {
            "model": state_dict(),
            "model_ema": {"n_averaged": torch.tensor(5), **state_dict(2.0, "module.")},
        },
        ("model_ema", "module."),
    ),
    "pycls": ({"model_state": state_dict(), "ema_state": state_dict(2.0)}, ("ema_state",)),
    "inside": (
        {"checkpoint": 3, "model": {"net": state_dict(), "ema_net": state_dict(2.0, "module.")}},
        ("model", "ema_net", "module."),
    ),
    # mmengine's EMAHook exchanges the values of the two when it saves.
    "mmengine": (
        {
            "meta": {"mmengine_version": "0.10.4"},
            "state_dict": state_dict(2.0),
            "ema_state_dict": {"steps": torch.tensor(5), **state_dict(1.0, "module.")},
        },
        ("state_dict",),
    ),
}


@pytest.mark.parametrize("program", AVERAGES)
def test_averaged_weights_are_taken_when_asked_for(program: str, tmp_path: Path) -> None:
    content, wrappers = AVERAGES[program]
    trained, averaged = read(tmp_path, content), read(tmp_path, content, ema=True)
    check(trained, 1.0)
    check(averaged, 2.0)
    assert averaged.wrappers == wrappers
    assert (trained.averaged, averaged.averaged) == (False, True)
    assert trained.has_other
    assert averaged.has_other


def test_counter_of_an_average_is_ignored(tmp_path: Path) -> None:
    weights = read(tmp_path, AVERAGES["torchvision"][0], ema=True)
    assert weights.ignored == ("model", "n_averaged")


def test_averaged_weights_that_are_alone_are_taken(tmp_path: Path) -> None:
    weights = read(tmp_path, {"epoch": 1, "model_ema": state_dict(2.0)})
    check(weights, 2.0)
    assert weights.averaged
    assert not weights.has_other


def test_averaged_weights_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"checkpoint\.pth holds no averaged weights"):
        read(tmp_path, {"model": state_dict(), "epoch": 1}, ema=True)


@pytest.mark.parametrize(
    ("prefixes", "found"),
    [
        ("module.module.", ("module.", "module.")),
        ("module._orig_mod.", ("module.", "_orig_mod.")),
        ("model.network.", ("model.", "network.")),
        ("net.backbone.", ("net.", "backbone.")),
    ],
)
def test_prefixes_come_off_in_any_order(
    prefixes: str, found: tuple[str, ...], tmp_path: Path
) -> None:
    weights = read(tmp_path, state_dict(prefix=prefixes))
    check(weights)
    assert weights.wrappers == found


def test_prefix_of_some_tensors_is_part_of_their_names(tmp_path: Path) -> None:
    mixed = {"module.conv1.weight": torch.ones(2), "fc.weight": torch.ones(2)}
    assert read(tmp_path, mixed).tensors.keys() == mixed.keys()


def test_head_beside_a_backbone_keeps_its_name(tmp_path: Path) -> None:
    content = {**state_dict(prefix="backbone."), "head.fc.weight": torch.ones(2)}
    weights = read(tmp_path, {"state_dict": content})
    assert tuple(weights.tensors) == (*NAMES, "head.fc.weight")
    assert weights.wrappers == ("state_dict", "backbone.")


def test_prefix_stays_where_two_tensors_would_get_one_name(tmp_path: Path) -> None:
    content = {"backbone.head.fc.weight": torch.ones(2), "head.fc.weight": torch.zeros(2)}
    assert read(tmp_path, content).tensors.keys() == content.keys()


def test_containers_are_opened_in_any_nesting(tmp_path: Path) -> None:
    content = {"module": {"weights": {"params": {"model_state_dict": state_dict()}}}}
    assert read(tmp_path, content).wrappers == ("module", "weights", "params", "model_state_dict")


def test_entries_of_a_state_dict_that_are_not_tensors_are_ignored(tmp_path: Path) -> None:
    weights = read(tmp_path, {**state_dict(), "bn1._extra_state": b"text", "name": None})
    check(weights)
    assert weights.ignored == ("bn1._extra_state", "name")


def test_container_that_holds_itself_is_read(tmp_path: Path) -> None:
    content: dict[str, Any] = state_dict()
    content["model"] = content
    check(read(tmp_path, content))


def test_container_that_only_holds_itself_holds_no_weights(tmp_path: Path) -> None:
    content: dict[str, Any] = {}
    content["model"] = content
    with pytest.raises(CheckpointError, match="it holds no weights; its entries are: 'model'"):
        read(tmp_path, content)


@pytest.fixture
def _others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put classes of two packages in place that need not be installed."""
    for module, name, base in (
        ("mmengine.logging.history_buffer", "HistoryBuffer", object),
        ("yacs.config", "CfgNode", dict),
    ):
        made = ModuleType(module)
        setattr(made, name, type(name, (base,), {"__module__": module}))
        for part in accumulate(module.split("."), "{}.{}".format):
            monkeypatch.setitem(sys.modules, part, made)


def history_buffer() -> Any:
    """Make one of mmengine's curves."""
    made = sys.modules["mmengine.logging.history_buffer"].HistoryBuffer()
    made.__dict__.update(max_length=3, _log_history=numpy.arange(3.0))
    return made


def configuration(**entries: object) -> Any:
    """Make one of yacs's dictionaries, which have attributes."""
    made = sys.modules["yacs.config"].CfgNode(**entries)
    made.__dict__["__immutable__"] = False
    return made


@pytest.mark.usefixtures("_others")
def test_what_scripts_save_beside_the_weights_is_passed_over(tmp_path: Path) -> None:
    content = {
        "state_dict": collections.OrderedDict(state_dict()),
        "message_hub": {"log_scalars": {"train/loss": history_buffer()}},
        "config": configuration(lr=0.1, model=configuration(name="resnet")),
        "scores": [numpy.float64(0.5), numpy.float32(0.5), numpy.int64(3), numpy.bool_(True)],
        "logs": collections.defaultdict(list, loss=[0.5]),
        "random": numpy.random.RandomState(0).get_state(),
        "seen": {1, 2},
        "bytes": b"\0\xff",
        "parameter": nn.Parameter(torch.ones(2)),
    }
    weights = read(tmp_path, content)
    check(weights)
    assert weights.ignored == tuple(content)[1:]


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ({"epoch": 1, "loss": {"train": 2.0}}, "it holds no weights; its entries are: 'epoch', 'l"),
        ({}, "it holds no weights; its entries are: none"),
        ({f"e{n}": n for n in range(15)}, "'e0', .*'e11' and 3 more$"),
        ({"state_dict": {}, "epoch": 1}, "its entries are: 'state_dict', 'epoch'"),
        ({0: torch.ones(2)}, "no weights by name: one is called 0"),
        ([torch.ones(2)], "it holds one list, not weights by name"),
        (torch.ones(2), "it holds one Tensor, not weights by name"),
        (options(), "it holds one ForeignObject, not weights by name"),
    ],
)
def test_file_without_weights_says_what_it_has(
    content: object, reason: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=reason):
        read(tmp_path, content)

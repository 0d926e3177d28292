"""Builder: first weights, stages, options that arrive, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.blocks import BLOCKS, HEADS
from resnet_builder.blocks.basic import BasicBlock
from resnet_builder.builder import build, load_experiment
from resnet_builder.errors import PartError, RegistryError, SpecError, UsageError
from resnet_builder.spec.load import read_draft
from tests.cli.experiments import write_tiny
from tests.networks import built, cifar_spec, random_images


def weights(network: nn.Module) -> Tensor:
    """Return every number in a network's state as one vector."""
    return torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])


def test_a_seed_decides_the_weights_and_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    first = weights(built(cifar_spec(2), seed=3))
    assert torch.equal(weights(built(cifar_spec(2), seed=3)), first)
    for other in (4, 3 + 2**32, 2**63 - 1):
        assert not torch.equal(weights(built(cifar_spec(2), seed=other)), first)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_seed_draws_from_the_global_generator() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(weights(built(cifar_spec())))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(
    ("init", "fan"),
    [
        ({"type": "kaiming_normal", "mode": "fan_out"}, "out"),
        ({"type": "kaiming_normal", "mode": "fan_in"}, "in"),
        ({"type": "kaiming_uniform", "mode": "fan_out"}, "out"),
        ("xavier_normal", "both"),
        ("xavier_uniform", "both"),
        ({"type": "normal", "std": 0.02}, None),
        ("default", "torch"),
    ],
)
def test_deviation_of_weights_is_the_formula_s(init: Any, fan: str | None) -> None:
    network = built(cifar_spec((1, 1), widths=(128, 256), init=init), seed=0)
    for module in network.modules():
        if not isinstance(module, nn.Conv2d) or module.weight.numel() <= 100_000:
            continue
        outputs, inputs, height, width = module.weight.shape
        pixels = height * width
        wanted = {
            "out": math.sqrt(2 / (pixels * outputs)),
            "in": math.sqrt(2 / (pixels * inputs)),
            "both": math.sqrt(2 / (pixels * (inputs + outputs))),
            "torch": math.sqrt(1 / (3 * pixels * inputs)),
            None: 0.02,
        }[fan]
        assert module.weight.std().item() == pytest.approx(wanted, rel=0.01)


def test_norms_start_neutral_and_the_classifier_as_pytorch_makes_it() -> None:
    network = built(cifar_spec(1, widths=(512,)), seed=0)
    assert torch.equal(network.bn1.weight, torch.ones(512))
    assert torch.equal(network.bn1.running_var, torch.ones(512))
    assert network.bn1.num_batches_tracked == 0
    bound = 1 / math.sqrt(512)
    assert network.fc.weight.abs().max() <= bound
    assert network.fc.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_init_residual_makes_every_block_its_shortcut(block: str) -> None:
    images = random_images(2, 64 if block == "basic" else 256, 8, 8).relu()
    for is_zeroed in (True, False):
        spec = cifar_spec(2, shortcut="projection", block=block, zero_init_residual=is_zeroed)
        network = built(spec, seed=0).eval()
        assert torch.equal(network.layer3[-1](images), images) == is_zeroed


@pytest.mark.parametrize(
    ("blocks", "rates"),
    [((1, 1, 1), [0.0, 0.15, 0.3]), ((1, 1, 3), [0.0, 0.075, 0.15, 0.225, 0.3]), ((1,), [0.3])],
)
def test_drop_path_rises_linearly_from_zero(blocks: Any, rates: list[float]) -> None:
    network = built(cifar_spec(blocks, widths=(16, 32, 64)[: len(blocks)], drop_path=0.3), seed=0)
    found = [getattr(block.drop_path, "p", 0.0) for stage in network.stages for block in stage]
    assert found == pytest.approx(rates)


def test_options_and_number_of_classes_arrive_in_every_block() -> None:
    """KellerJordan's dropout was in the first block of each stage only."""
    shortcut, block = {"type": "pad", "position": "end"}, {"type": "basic", "dropout": 0.5}
    network = built(cifar_spec(3, shortcut=shortcut, block=block, classes=7))
    assert network.layer2[0].downsample.zeros == (0, 16)
    assert network.fc.out_features == 7
    found = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert found == [0.5] * 9


class Peculiar(BasicBlock):
    """A block with a bias, and with tensors of its own that no initialisation knows."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Any) -> None:
        super().__init__(in_channels, channels, stride=stride, shortcut=shortcut)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.register_buffer("buffer", torch.arange(3.0))
        self.parameter = nn.Parameter(torch.arange(3.0))
        self.tensor = torch.arange(3.0)


def test_a_bias_is_initialised_and_what_a_block_computes_itself_survives() -> None:
    """kuangliu's function failed on a bias, and nobody called it."""
    with BLOCKS.temporary("peculiar", Peculiar):
        network = built(cifar_spec(2, block="peculiar"), seed=0)
    block = network.layer3[1]
    assert block.conv2.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert torch.equal(block.conv2.bias, torch.zeros(64))
    for tensor in (block.buffer, block.parameter, block.tensor):
        assert torch.equal(tensor, torch.arange(3.0))


def test_a_network_that_is_not_what_the_spec_expects_is_refused() -> None:
    spec = cifar_spec(3)
    data = spec.model_dump(exclude_none=True) | {"expect": {"parameters": 269_723, "depth": 21}}
    with pytest.raises(SpecError, match="269,722 parameters, not 269,723") as caught:
        built(type(spec).model_validate(data))
    paths = [problem.path for problem in caught.value.errors]
    assert paths == ["expect.parameters", "expect.depth"]


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ({"block": "basik"}, RegistryError, "no block is named 'basik'"),
        ({"shortcut": "padd"}, RegistryError, "no shortcut is named 'padd'"),
        ({"norm": {"type": "group_norm", "groups": 5}}, PartError, "5 groups do not divide 16"),
        (
            {"norm": {"type": "batch_norm", "eps": "small"}},
            PartError,
            r"^batch_norm: eps: Input should be a valid number$",
        ),
    ],
)
def test_a_spec_that_was_not_checked_is_refused_when_built(
    model: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        built(cifar_spec(**model))


def test_head_may_not_replace_an_earlier_layer() -> None:
    def clashing(in_channels: int, num_classes: int) -> dict[str, nn.Module]:
        return {"bn1": nn.Flatten(1), "fc": nn.Linear(in_channels, num_classes)}

    message = "its layer 'bn1' has the name of one before it"
    with HEADS.temporary("clashing", clashing), pytest.raises(PartError, match=message):
        built(cifar_spec(head="clashing"))


def test_any_image_size_and_number_of_channels() -> None:
    """kuangliu's and akamaster's pools were for 32x32 images, or for square ones."""
    for channels, *size in ((3, 32, 32), (3, 40, 24), (1, 33, 57), (4, 8, 8)):
        network = built(cifar_spec(in_channels=channels), seed=0)
        assert network(random_images(2, channels, *size)).shape == (2, 10)


def test_experiment_has_sections_and_network_of_a_draft_that_is_not_read_again(
    tmp_path: Path,
) -> None:
    path = write_tiny(tmp_path)
    draft = read_draft(path, overrides=["train.seed=5"])
    path.unlink()
    experiment = load_experiment(draft)
    assert experiment.train.seed == 5
    assert experiment.input_shape == experiment.model.image_shape
    assert experiment.data.dataset.type == "synthetic"
    assert all(parameter.is_meta for parameter in experiment.network.parameters())
    first, second = (build(source, seed=1) for source in (experiment, experiment.spec))
    assert torch.equal(weights(first), weights(second))


@pytest.mark.parametrize("section", ["data", "train"])
def test_experiment_needs_data_and_a_recipe(section: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a spec to train needs `data` and `train`"):
        load_experiment(write_tiny(tmp_path), overrides=[f"{section}=null"])


def test_experiment_with_problems_raises_all_of_them(tmp_path: Path) -> None:
    overrides = ["model.block=basik", "model.shortcut=padd", "train.epochs=0"]
    with pytest.raises(SpecError) as caught:
        load_experiment(write_tiny(tmp_path), overrides=overrides)
    paths = {problem.path for problem in caught.value.errors}
    assert paths == {"model.block", "model.shortcut", "train.epochs"}

"""Builder: first weights, stages, options that arrive, and what is refused."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from resnet_builder.blocks import BLOCKS, HEADS, NORMS
from resnet_builder.blocks.basic import BasicBlock
from resnet_builder.builder import build, drop_path_rates, load_experiment
from resnet_builder.errors import PartError, RegistryError, SpecError, UsageError
from resnet_builder.spec.load import read_draft
from tests.cli.experiments import write_tiny
from tests.networks import built, cifar_spec, random_images


def weights(network: nn.Module) -> Tensor:
    """Return every number in a network's state as one vector."""
    return torch.cat([tensor.flatten().double() for tensor in network.state_dict().values()])


def convolutions(network: nn.Module) -> Iterator[nn.Conv2d]:
    return (module for module in network.modules() if isinstance(module, nn.Conv2d))


def test_same_seed_gives_the_same_weights() -> None:
    first, second = (weights(built(cifar_spec(2), seed=3)) for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("other", [4, 3 + 2**32, 2**63 - 1])
def test_other_seeds_give_other_weights(other: int) -> None:
    assert not torch.equal(
        weights(built(cifar_spec(), seed=3)), weights(built(cifar_spec(), seed=other))
    )


def test_a_seed_leaves_global_randomness_alone() -> None:
    before = torch.get_rng_state()
    built(cifar_spec(), seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_no_seed_draws_from_the_global_generator() -> None:
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(weights(built(cifar_spec())))
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])


def test_blocks_of_one_stage_differ_in_their_weights() -> None:
    network = built(cifar_spec(4), seed=0)
    first, second = (network.layer1[index].conv1.weight for index in (1, 2))
    assert not torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def test_blocks_of_one_stage_share_no_hooks() -> None:
    network = built(cifar_spec(4), seed=0)
    calls: list[int] = []
    network.layer1[1].register_forward_hook(lambda *_: calls.append(1))
    network(random_images(1, 3, 32, 32))
    assert calls == [1]


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
    network = built(cifar_spec(1, widths=(128, 256, 512), init=init), seed=0)
    for convolution in convolutions(network):
        outputs, inputs, height, width = convolution.weight.shape
        pixels = height * width
        wanted = {
            "out": math.sqrt(2 / (pixels * outputs)),
            "in": math.sqrt(2 / (pixels * inputs)),
            "both": math.sqrt(2 / (pixels * (inputs + outputs))),
            "torch": math.sqrt(1 / (3 * pixels * inputs)),
            None: 0.02,
        }[fan]
        if convolution.weight.numel() > 100_000:
            assert convolution.weight.std().item() == pytest.approx(wanted, rel=0.01)


def test_norms_start_neutral_and_the_classifier_as_pytorch_makes_it() -> None:
    network = built(cifar_spec(1, widths=(512, 512)), seed=0)
    assert torch.equal(network.bn1.weight, torch.ones(512))
    assert torch.equal(network.bn1.running_var, torch.ones(512))
    assert network.bn1.num_batches_tracked == 0
    bound = 1 / math.sqrt(512)
    assert network.fc.weight.abs().max() <= bound
    assert network.fc.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
def test_zero_init_residual_makes_every_block_its_shortcut(block: str) -> None:
    spec = cifar_spec(2, shortcut="projection", block=block, zero_init_residual=True)
    network = built(spec, seed=0).eval()
    images = random_images(2, 64 if block == "basic" else 256, 8, 8).relu()
    last = network.layer3[-1]
    assert torch.equal(last(images), images)
    plain = built(spec.model_copy(update={"model": cifar_spec(2, block=block).model}), seed=0)
    assert not torch.equal(plain.eval().layer3[-1](images), images)


@pytest.mark.parametrize(
    ("blocks", "rates"),
    [(1, [0.0, 0.15, 0.3]), ((1, 1, 3), [0.0, 0.075, 0.15, 0.225, 0.3])],
)
def test_drop_path_rises_linearly_from_zero(blocks: Any, rates: list[float]) -> None:
    spec = cifar_spec(blocks, drop_path=0.3)
    found = [rate for stage in drop_path_rates(spec.model) for rate in stage]
    assert found == pytest.approx(rates)
    network = built(spec, seed=0)
    made = [getattr(block.drop_path, "p", 0.0) for stage in network.stages for block in stage]
    assert made == pytest.approx(rates)


def test_drop_path_of_a_single_block_is_the_last_block_s() -> None:
    assert drop_path_rates(cifar_spec((1,), widths=(16,), drop_path=0.3).model) == [[0.3]]


def test_dropout_reaches_every_block() -> None:
    """KellerJordan's network had it in the first block of each stage only."""
    network = built(cifar_spec(3, block={"type": "basic", "dropout": 0.5}), seed=0)
    found = [module.p for module in network.modules() if isinstance(module, nn.Dropout)]
    assert found == [0.5] * 9


def test_options_and_number_of_classes_arrive() -> None:
    """akamaster's could not be given."""
    network = built(cifar_spec(1, shortcut={"type": "pad", "position": "end"}, classes=7))
    assert network.layer2[0].downsample.zeros == (0, 16)
    assert network.fc.out_features == 7


def test_convolution_with_a_bias_is_initialised() -> None:
    """kuangliu's function failed on one, and nobody called it."""

    class Biased(BasicBlock):
        def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
            super().__init__(in_channels, channels, **contract)
            self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    with BLOCKS.temporary("biased", Biased):
        conv = built(cifar_spec(1, block="biased"), seed=0).layer3[0].conv2
    assert conv.weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.05)
    assert torch.equal(conv.bias, torch.zeros(64))


def test_last_sum_of_preactivated_blocks_is_normalised_and_rectified() -> None:
    """kuangliu's network pooled a bare sum."""
    stem = {"type": "conv3x3", "channels": 16, "bare": True}
    network = built(cifar_spec(1, block="preact_basic", stem=stem, shortcut="projection"), seed=0)
    images = random_images(2, 3, 32, 32)
    names = [name for name, _ in network.named_children()]
    sums = network[: names.index("layer3") + 1](images)
    pooled = network[: names.index("avgpool")](images)
    assert sums.min() < 0
    assert pooled.min() == 0
    wanted = nn.functional.batch_norm(sums, None, None, training=True).relu()
    torch.testing.assert_close(pooled, wanted, rtol=0, atol=1e-5)


def test_options_of_a_stage_s_own_block_are_used() -> None:
    spec = cifar_spec(1)
    stages = [stage.model_dump(exclude_none=True) for stage in spec.model.stages]
    stages[1]["block"] = {"type": "bottleneck", "groups": 4}
    stages[2]["shortcut"] = "projection_all"
    network = built(cifar_spec(1, stages=stages), seed=0)
    assert network.layer2[0].conv2.groups == 4
    assert network.layer3[0].conv1.in_channels == 4 * 32
    assert isinstance(network.layer3[0].downsample, nn.Sequential)


def test_no_convolution_before_a_norm_has_a_bias() -> None:
    """KellerJordan's and weiaicunzai's had: 2,032 parameters too many for 56 layers."""
    for shortcut in ("pad", "projection", "projection_all", "average_projection"):
        assert all(conv.bias is None for conv in convolutions(built(cifar_spec(shortcut=shortcut))))


class WithBuffer(BasicBlock):
    """A block with a computed buffer, which emptying would lose."""

    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.register_buffer("ramp", torch.arange(3.0))


class WithTensor(BasicBlock):
    """A block with a tensor that is neither parameter nor buffer."""

    def __init__(self, in_channels: int, channels: int, **contract: Any) -> None:
        super().__init__(in_channels, channels, **contract)
        self.ramp = torch.arange(3.0)


class WithParameter(BasicBlock):
    """A block with a parameter of its own that nothing resets."""

    def __init__(self, in_channels: int, channels: int, *, stride: int, shortcut: Any) -> None:
        super().__init__(in_channels, channels, stride=stride, shortcut=shortcut)
        self.ramp = nn.Parameter(torch.arange(3.0))


@pytest.mark.parametrize("block", [WithBuffer, WithTensor, WithParameter])
def test_what_a_block_computes_itself_survives(block: type[nn.Module]) -> None:
    takes_all = block is not WithParameter
    with BLOCKS.temporary("mine", WithContract(block) if takes_all else block):
        network = built(cifar_spec(2, block="mine"), seed=0)
        for stage in network.stages:
            for made in stage:
                assert torch.equal(made.ramp, torch.arange(3.0))
        assert network(random_images(2, 3, 32, 32)).isfinite().all()


def WithContract(block: type[nn.Module]) -> Any:
    """Name the contract's parameters that ``**contract`` hides."""

    def make(in_channels: int, channels: int, *, stride: int, shortcut: Any) -> nn.Module:
        return block(in_channels, channels, stride=stride, shortcut=shortcut)

    return make


def test_a_network_that_is_not_what_the_spec_expects_is_refused() -> None:
    spec = cifar_spec(3)
    data = spec.model_dump(exclude_none=True) | {"expect": {"parameters": 269_723, "depth": 21}}
    with pytest.raises(SpecError) as caught:
        built(type(spec).model_validate(data))
    assert [problem.path for problem in caught.value.errors] == [
        "expect.parameters",
        "expect.depth",
    ]
    assert "269,722 parameters, not 269,723" in str(caught.value)


@pytest.mark.parametrize(
    ("key", "name", "suggestion"), [("block", "basik", "basic"), ("shortcut", "padd", "pad")]
)
def test_unknown_part_is_refused_when_built(key: str, name: str, suggestion: str) -> None:
    """KellerJordan's unknown option passed, and failed in the first forward pass."""
    with pytest.raises(RegistryError, match=f"no {key} is named '{name}'") as caught:
        built(cifar_spec(block=name) if key == "block" else cifar_spec(shortcut=name))
    assert caught.value.suggestion == suggestion


def test_shapes_that_do_not_fit_are_refused_when_built() -> None:
    with pytest.raises(PartError, match="5 groups do not divide 16 channels"):
        built(cifar_spec(norm={"type": "group_norm", "groups": 5}))


def test_option_of_the_wrong_kind_is_an_error_of_its_part() -> None:
    with pytest.raises(PartError, match=r"^batch_norm: eps: Input should be a valid number$"):
        built(cifar_spec(norm={"type": "batch_norm", "eps": "small"}))


@pytest.mark.parametrize("norm", NORMS.names())
def test_every_norm_trains_and_is_deterministic(norm: str) -> None:
    options = {"groups": 8} if norm == "group_norm" else {}
    network = built(cifar_spec(norm={"type": norm, **options}), seed=0)
    images = random_images(2, 3, 32, 32)
    network(images).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())
    with torch.no_grad():
        assert torch.equal(network.eval()(images), network(images))


def test_head_after_a_stem_with_an_activation_has_one_of_its_own() -> None:
    network = built(cifar_spec(block="preact_basic", head="preact_linear"))
    names = [name for name, _ in network.named_children()]
    assert names[:3] == ["conv1", "bn1", "relu"]
    assert names[-5:] == ["norm", "norm_relu", "avgpool", "flatten", "fc"]


def test_head_may_not_replace_an_earlier_layer() -> None:
    def clashing(in_channels: int, num_classes: int) -> dict[str, nn.Module]:
        return {"bn1": nn.Flatten(1), "fc": nn.Linear(in_channels, num_classes)}

    with (
        HEADS.temporary("clashing", clashing),
        pytest.raises(PartError, match="its layer 'bn1' has the name of one before it"),
    ):
        built(cifar_spec(head="clashing"))


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_any_number_of_input_channels(channels: int) -> None:
    network = built(cifar_spec(in_channels=channels), seed=0)
    assert network(random_images(2, channels, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("size", [(32, 32), (40, 24), (33, 57), (8, 8)])
def test_any_image_size(size: tuple[int, int]) -> None:
    """kuangliu's and akamaster's pools were for 32x32 images, or for square ones."""
    network = built(cifar_spec(), seed=0)
    assert network(random_images(2, 3, *size)).shape == (2, 10)


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
    assert {problem.path for problem in caught.value.errors} == {
        "model.block",
        "model.shortcut",
        "train.epochs",
    }

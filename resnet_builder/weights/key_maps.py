"""Key maps: names of layers in other codebases (timm, mmpretrain, pycls, ...), as tables.

The names here are torchvision's. :mod:`resnet_builder.weights.convert` uses these tables, and
docs/reference/checkpoints.md describes them to users.
"""

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

_NUMBERS = re.compile(r"\\{(stage|block|number)\\}")


@dataclass(frozen=True, slots=True)
class KeyMap:
    """Names of layers in another codebase, each with the name here.

    In names, ``{stage}``, ``{block}`` and ``{number}`` stand for numbers. A layer that is not
    listed has the same name in both.

    Attributes:
        name: Name of the codebase.
        layers: Our name for each of theirs. Where several are given, the first that the network
            has is meant.
        first_stage: Number of the first stage in their names; here it is 1.
        first_block: Number of a stage's first block in their names; here it is 0.
        unsupported: Reason why no part computes what these networks do, if there is one.
    """

    name: str
    layers: Mapping[str, str | tuple[str, ...]]
    first_stage: int = 1
    first_block: int = 0
    unsupported: str | None = None
    _patterns: tuple[tuple[re.Pattern[str], tuple[str, ...]], ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        patterns = tuple(
            (_pattern(theirs), (ours,) if isinstance(ours, str) else ours)
            for theirs, ours in self.layers.items()
        )
        object.__setattr__(self, "_patterns", patterns)  # the class is frozen

    def translate(self, layer: str, network: Collection[str]) -> str | None:
        """Our name of a layer, or ``None`` if the network has no such layer.

        Args:
            layer: Their name of it.
            network: Names of all layers of the network.
        """
        for pattern, ours in self._patterns:
            if found := pattern.fullmatch(layer):
                numbers = self._renumbered(found.groupdict())
                candidates = [one.format(**numbers) for one in ours]
                return next((one for one in candidates if one in network), None)
        return layer if layer in network else None

    def original(self, layer: str) -> str:
        """Their name of one of our layers, for maps in which every name of ours stands once."""
        for theirs, ours in self.layers.items():
            if isinstance(ours, str) and (found := _pattern(ours).fullmatch(layer)):
                first = {"stage": self.first_stage - 1, "block": self.first_block}
                numbers = {key: int(n) + first.get(key, 0) for key, n in found.groupdict().items()}
                return theirs.format(**numbers)
        return layer

    def _renumbered(self, numbers: Mapping[str, str]) -> dict[str, int]:
        first = {"stage": self.first_stage - 1, "block": self.first_block}
        return {key: int(number) - first.get(key, 0) for key, number in numbers.items()}


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(_NUMBERS.sub(r"(?P<\1>[0-9]{1,4})", re.escape(name)))


def _branch(name: str, layers: Mapping[int, str]) -> dict[str, str]:
    """Names of the layers of a residual path that are numbered, activations included."""
    return {
        f"{name}.{number}": f"layer{{stage}}.{{block}}.{ours}" for number, ours in layers.items()
    }


_POST_ACTIVATION = {0: "conv1", 1: "bn1", 3: "conv2", 4: "bn2", 6: "conv3", 7: "bn3"}
_PRE_ACTIVATION = {0: "bn1", 2: "conv1", 3: "bn2", 5: "conv2", 6: "bn3", 8: "conv3"}

KEY_MAPS = (
    # The names here are torchvision's; timm's ResNets and chenyaofo's have them too.
    KeyMap("torchvision", {}),
    # akamaster's shortcuts have no tensors, so that only the name of the head tells it apart.
    KeyMap("akamaster", {"linear": "fc"}),
    KeyMap(
        "kuangliu",  # and the CIFAR ResNets of super-gradients
        {
            "layer{stage}.{block}.shortcut.{number}": "layer{stage}.{block}.downsample.{number}",
            "layer{stage}.{block}.fc{number}": "layer{stage}.{block}.se.fc{number}",
            "linear": "fc",
        },
    ),
    KeyMap(
        "kellerjordan",  # whose convolutions have biases
        {
            "norm1": "bn1",
            "layers{stage}.{block}.conv{number}": "layer{stage}.{block}.conv{number}",
            "layers{stage}.{block}.bn{number}": "layer{stage}.{block}.bn{number}",
            "linear": "fc",
        },
    ),
    KeyMap(
        "mmpretrain",
        {
            "layer{stage}.{block}.se_layer.conv{number}.conv": "layer{stage}.{block}.se.fc{number}",
            "head.fc": "fc",
            # The deep stem of its ResNetV1c and ResNetV1d.
            "stem.0.conv": "conv1.0",
            "stem.0.bn": "conv1.1",
            "stem.1.conv": "conv1.3",
            "stem.1.bn": "conv1.4",
            "stem.2.conv": "conv1.6",
            "stem.2.bn": "bn1",
            # ResNetV1d numbers a shortcut that does not stride without its average.
            "layer1.0.downsample.0": ("layer1.0.downsample.0", "layer1.0.downsample.1"),
            "layer1.0.downsample.1": ("layer1.0.downsample.2", "layer1.0.downsample.1"),
        },
    ),
    KeyMap(
        "pycls",  # its ResNets and AnyNets
        {
            "stem.conv": "conv1",
            "stem.bn": "bn1",
            "s{stage}.b{block}.f.a": "layer{stage}.{block}.conv1",
            "s{stage}.b{block}.f.a_bn": "layer{stage}.{block}.bn1",
            "s{stage}.b{block}.f.b": "layer{stage}.{block}.conv2",
            "s{stage}.b{block}.f.b_bn": "layer{stage}.{block}.bn2",
            "s{stage}.b{block}.f.c": "layer{stage}.{block}.conv3",
            "s{stage}.b{block}.f.c_bn": "layer{stage}.{block}.bn3",
            "s{stage}.b{block}.proj": "layer{stage}.{block}.downsample.0",
            "s{stage}.b{block}.bn": "layer{stage}.{block}.downsample.1",
            "head.fc": "fc",
        },
        first_block=1,
    ),
    KeyMap(
        "hysts",
        {
            "conv": "conv1",
            # The norm of the stem, or the last one where pre-activated CIFAR stems have none.
            "bn": ("bn1", "norm"),
            "stage{stage}.block{block}.conv{number}": "layer{stage}.{block}.conv{number}",
            "stage{stage}.block{block}.bn{number}": "layer{stage}.{block}.bn{number}",
            "stage{stage}.block{block}.se.fc{number}": "layer{stage}.{block}.se.fc{number}",
            "stage{stage}.block{block}.shortcut.conv": "layer{stage}.{block}.downsample.0",
            "stage{stage}.block{block}.shortcut.bn": "layer{stage}.{block}.downsample.1",
            "bn_last": "norm",
        },
        first_block=1,
    ),
    KeyMap(
        "timm resnetv2",
        {
            "stem.conv": "conv1",
            "stages.{stage}.blocks.{block}.conv{number}": "layer{stage}.{block}.conv{number}",
            "stages.{stage}.blocks.{block}.norm{number}": "layer{stage}.{block}.bn{number}",
            "stages.{stage}.blocks.{block}.downsample.conv": "layer{stage}.{block}.downsample.0",
            "head.fc": "fc",
        },
        first_stage=0,
    ),
    KeyMap(
        "transformers",  # Hugging Face's ResNet
        {
            "embedder.embedder.convolution": "conv1",
            "embedder.embedder.normalization": "bn1",
            **{
                f"encoder.stages.{{stage}}.layers.{{block}}.{theirs}.{kind}": (
                    f"layer{{stage}}.{{block}}.{ours}"
                )
                for theirs, convolution, norm in (
                    ("layer.0", "conv1", "bn1"),
                    ("layer.1", "conv2", "bn2"),
                    ("layer.2", "conv3", "bn3"),
                    ("shortcut", "downsample.0", "downsample.1"),
                )
                for kind, ours in (("convolution", convolution), ("normalization", norm))
            },
            "classifier.1": "fc",
        },
        first_stage=0,
    ),
    KeyMap(
        "weiaicunzai",
        {
            "conv1.0": "conv1",
            "conv1.1": "bn1",
            **_branch("conv{stage}_x.{block}.residual_function", _POST_ACTIVATION),
            "conv{stage}_x.{block}.shortcut.{number}": "layer{stage}.{block}.downsample.{number}",
        },
        first_stage=2,
    ),
    KeyMap(
        "weiaicunzai preactresnet",
        {
            "pre.0": "conv1",
            "pre.1": "bn1",
            **_branch("stage{stage}.{block}.residual", _PRE_ACTIVATION),
            "stage{stage}.{block}.shortcut": "layer{stage}.{block}.downsample.0",
            "linear": "fc",
        },
    ),
    KeyMap(
        "weiaicunzai senet",
        {
            "pre.0": "conv1",
            "pre.1": "bn1",
            **_branch("stage{stage}.{block}.residual", _POST_ACTIVATION),
            "stage{stage}.{block}.shortcut.{number}": "layer{stage}.{block}.downsample.{number}",
            "stage{stage}.{block}.excitation.0": "layer{stage}.{block}.se.fc1",
            "stage{stage}.{block}.excitation.2": "layer{stage}.{block}.se.fc2",
            "linear": "fc",
        },
        unsupported=(
            "its blocks have an activation before squeeze-and-excitation, which no part has"
        ),
    ),
)
"""Every key map; of two that fit a file equally well, the first is taken."""


def place_layers(
    layers: Collection[str], network: Collection[str]
) -> tuple[KeyMap, str, dict[str, str]]:
    """Find the codebase whose names give a place to most of a file's layers.

    The names may have a prefix of one part, as ``backbone.`` and ``encoder.``, beside which the
    head may stand.

    Args:
        layers: Names of the layers in the file.
        network: Names of the layers of the network that the file is for.

    Returns:
        The codebase's key map, the prefix, and our name of each layer that has a place.
    """
    first_parts = Counter(layer.partition(".")[0] for layer in layers if "." in layer)
    prefixes = ["", *(f"{part}." for part, _ in first_parts.most_common(1))]
    found = [
        (
            key_map,
            prefix,
            {
                layer: ours
                for layer in layers
                if (ours := key_map.translate(layer.removeprefix(prefix), network)) is not None
            },
        )
        for prefix in prefixes
        for key_map in KEY_MAPS
    ]
    return max(found, key=lambda one: len(one[2]))

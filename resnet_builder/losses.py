"""Losses of training, and their registry."""

from collections.abc import Callable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from resnet_builder.errors import PartError, counted, nearest
from resnet_builder.registry import Registry


class Loss(nn.Module):
    """Base class of losses: the mean over the images of a batch.

    A subclass registers itself in :data:`LOSSES`. Its keyword-only arguments are its options, but
    for two that it is given if it names them: ``class_counts``, the number of training images of
    each class, by its name and in the order of the logits; and ``num_images``, that of all.

    ``forward(logits, targets)`` takes ``(B, K)`` float32 logits and one of

    - ``(B,)`` int64 labels;
    - ``(B, K)`` float32 probabilities, once images are mixed;
    - ``(B, K)`` float32 of zeros and ones, or a mixture of them, if images have several labels.

    Attributes:
        takes_several_labels: Whether an image may have several labels at once, or none.
    """

    takes_several_labels = False

    def total_weight(self, targets: Tensor) -> Tensor | None:
        """Sum of the weights of the images, which the mean is divided by.

        ``None``: every image counts the same. A batch that is computed in parts, or by several
        processes, has the mean of the whole batch all the same: parts count by their sums.
        """
        return None


LOSSES: Registry[Callable[..., Loss]] = Registry(
    "loss",
    contract=("class_counts", "num_images"),
    hints={
        **dict.fromkeys(("bce", "bce_with_logits"), "its name here is `binary_cross_entropy`"),
        **dict.fromkeys(("ce", "nll", "softmax"), "its name here is `cross_entropy`"),
    },
)

Weight = Annotated[float, Field(ge=1e-6, le=1e6)]
ClassWeights = (
    Literal["balanced"]
    | Annotated[tuple[Weight, ...], Field(min_length=1)]
    | Annotated[dict[str, Weight], Field(min_length=1)]
)
"""Weight of each class: a list in their order, a mapping (1 for others), or balanced."""


class _ClassWeighted(Loss):
    """Base of losses that weight each class; weights of labels add up as torch adds them.

    Args:
        class_weights: Weight of each class, if they differ.
        class_counts: Number of training images of each class.
    """

    weight: Tensor | None

    def __init__(self, class_weights: ClassWeights | None, class_counts: Mapping[str, int]) -> None:
        super().__init__()
        self.register_buffer("weight", _class_weights(class_weights, class_counts))

    def total_weight(self, targets: Tensor) -> Tensor | None:
        """Sum of the weights of labels; mixed ones count the same."""
        weight = self.weight
        return weight[targets].sum() if weight is not None and targets.ndim == 1 else None


@LOSSES.register("cross_entropy")
class CrossEntropy(_ClassWeighted):
    """Cross entropy, of smoothed labels if asked for (Szegedy et al. 2016).

    It is ``torch.nn.functional.cross_entropy``. With weights, the mean of labels is divided by the
    sum of their weights, that of mixed labels by their number, as torch does it.

    Args:
        label_smoothing: Share of the probability that is spread over all classes.
        class_weights: Weight of each class: a list, a mapping from names (others have 1), or
            `balanced`: n / (K * n_c), from the training images.
        class_counts: Number of training images of each class.
    """

    def __init__(
        self,
        *,
        label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        class_weights: ClassWeights | None = None,
        class_counts: Mapping[str, int],
    ) -> None:
        super().__init__(class_weights, class_counts)
        self._label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss."""
        return functional.cross_entropy(
            logits, targets, self.weight, label_smoothing=self._label_smoothing
        )


@LOSSES.register("focal")
class FocalLoss(_ClassWeighted):
    """Focal loss of the softmax: cross entropy times ``(1 - p) ** gamma`` (Lin et al. 2017).

    https://arxiv.org/abs/1708.02002, equation 5, with ``p`` the probability of the label. Easy
    images count less. With ``gamma: 0`` it is ``cross_entropy``, weights included.

    Args:
        gamma: Exponent: how much less easy images count.
        class_weights: Weight of each class, as of `cross_entropy`; the paper's alpha.
        class_counts: Number of training images of each class.
    """

    def __init__(
        self,
        *,
        gamma: Annotated[float, Field(ge=0, le=10)] = 2.0,
        class_weights: ClassWeights | None = None,
        class_counts: Mapping[str, int],
    ) -> None:
        super().__init__(class_weights, class_counts)
        self._gamma = gamma

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss."""
        log_p = logits.log_softmax(dim=1)
        # Of a certain prediction 1 - p is 0, where powers below 1 have no finite slope.
        hardness = (-log_p.expm1()).clamp_min(torch.finfo(log_p.dtype).tiny) ** self._gamma
        # nll_loss and cross_entropy weight, pick and average alike.
        if targets.ndim == 1:
            return functional.nll_loss(hardness * log_p, targets, self.weight)
        weighted = targets if self.weight is None else targets * self.weight
        return -(weighted * hardness * log_p).sum(dim=1).mean()


@LOSSES.register("binary_cross_entropy")
class BinaryCrossEntropy(Loss):
    """Binary cross entropy of each class against all others (Wightman et al. 2021).

    https://arxiv.org/abs/2110.00476, section 3. It is torch's
    ``binary_cross_entropy_with_logits``, the mean over images and classes. Images may have
    several labels at once.

    Args:
        pos_weight: Weight of each class where it is present: a list, a mapping from names (others
            have 1), or `balanced`: images without the class over images with it.
        target_threshold: Targets above it become 1, all others 0. After mixup and CutMix an image
            then has both labels. By default they stay as they are.
        class_counts: Number of training images of each class.
        num_images: Number of training images.
    """

    takes_several_labels = True
    pos_weight: Tensor | None

    def __init__(
        self,
        *,
        pos_weight: ClassWeights | None = None,
        target_threshold: Annotated[float, Field(ge=0, lt=1)] | None = None,
        class_counts: Mapping[str, int],
        num_images: int,
    ) -> None:
        super().__init__()
        self._target_threshold = target_threshold
        weight = _positive_weights(pos_weight, class_counts, num_images)
        self.register_buffer("pos_weight", weight)

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss."""
        targets = _binary(targets, logits)
        if self._target_threshold is not None:
            targets = (targets > self._target_threshold).to(targets.dtype)
        return functional.binary_cross_entropy_with_logits(
            logits, targets, pos_weight=self.pos_weight
        )


@LOSSES.register("sigmoid_focal")
class SigmoidFocalLoss(Loss):
    """Focal loss of each class against all others, as torchvision has it (Lin et al. 2017).

    It is ``torchvision.ops.sigmoid_focal_loss``, the mean over images and classes. Images may have
    several labels at once.

    Args:
        gamma: Exponent: how much less easy decisions count. Below 1 its gradient is not finite
            where the network is certain.
        alpha: Weight of the classes that are present; those that are absent have 1 - alpha.
    """

    takes_several_labels = True

    def __init__(
        self,
        *,
        gamma: Annotated[float, Field(ge=1, le=10)] = 2.0,
        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.25,
    ) -> None:
        super().__init__()
        self._gamma = gamma
        self._alpha = alpha

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the mean loss."""
        from torchvision.ops import sigmoid_focal_loss  # its import takes a second

        loss: Tensor = sigmoid_focal_loss(
            logits, _binary(targets, logits), self._alpha, self._gamma, reduction="mean"
        )
        return loss


def _class_weights(given: ClassWeights | None, counts: Mapping[str, int]) -> Tensor | None:
    """Weights as ``(K,)`` float32; balanced ones are scikit-learn's, and have the mean 1 an image.

    Raises:
        PartError: They do not fit the classes.
    """
    if given != "balanced":
        return _given_weights(given, counts, "class_weights")
    _check_every_class_present(counts, "class_weights")
    total = sum(counts.values())
    return torch.tensor([total / (len(counts) * count) for count in counts.values()])


def _positive_weights(
    given: ClassWeights | None, counts: Mapping[str, int], num_images: int
) -> Tensor | None:
    if given != "balanced":
        return _given_weights(given, counts, "pos_weight")
    _check_every_class_present(counts, "pos_weight")
    if everywhere := [name for name, count in counts.items() if count == num_images]:
        raise PartError(
            f"every training image has the class '{everywhere[0]}', which `balanced` cannot weight",
            code="mismatch",
            option="pos_weight",
        )
    return torch.tensor([(num_images - count) / count for count in counts.values()])


def _given_weights(
    given: tuple[float, ...] | Mapping[str, float] | str | None,
    counts: Mapping[str, int],
    option: str,
) -> Tensor | None:
    if given is None:
        return None
    assert not isinstance(given, str), "balanced weights are computed"
    if isinstance(given, Mapping):
        for name in given:
            if name not in counts:
                suggestion = nearest(name, counts)
                hint = f"; did you mean '{suggestion}'" if suggestion else ""
                message = f"the data has no class '{name}'{hint}"
                raise PartError(message, code="unknown-name", option=option)
        given = tuple(given.get(name, 1.0) for name in counts)
    if len(given) != len(counts):
        weights, classes = counted(len(given), "weight"), counted(len(counts), "class", "classes")
        raise PartError(f"{weights} for {classes}", code="mismatch", option=option)
    return torch.tensor(given)


def _check_every_class_present(counts: Mapping[str, int], option: str) -> None:
    if absent := [name for name, count in counts.items() if count == 0]:
        raise PartError(
            f"there are no training images of '{absent[0]}', which `balanced` would weight; "
            "give a list or a mapping of weights",
            code="mismatch",
            option=option,
        )


def _binary(targets: Tensor, logits: Tensor) -> Tensor:
    """Targets as ``(B, K)``, one class against all others."""
    if targets.ndim == 1:
        targets = functional.one_hot(targets, logits.shape[1])
    return targets.to(logits.dtype)

"""From another program's checkpoint to a file of weights that the other commands accept."""

from pathlib import Path

from resnet_builder.builder import build
from resnet_builder.errors import UsageError
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import Normalize, Spec
from resnet_builder.weights.convert import LoadReport, load_weights
from resnet_builder.weights.file import Origin, WeightsHeader, save_weights


def import_weights(
    checkpoint: Path,
    spec: Spec,
    out: Path,
    *,
    new_head: bool = False,
    ema: bool = False,
    allow_missing: bool = False,
    allow_unexpected: bool = False,
) -> LoadReport:
    """Load a checkpoint into a spec's network, and write that as a file of weights.

    Args:
        checkpoint: The other program's file.
        spec: Resolved; describes the network and, as far as that is known, its data.
        out: The file to make.
        new_head: As for :func:`load_weights`; the head is drawn with the spec's seed.
        ema: As for :func:`load_weights`.
        allow_missing: As for :func:`load_weights`.
        allow_unexpected: As for :func:`load_weights`.

    Raises:
        CheckpointError: The checkpoint cannot be read, or does not hold the network's weights.
        SpecError: The network is not what the spec expects.
        StorageError: A file cannot be read or written.
        UsageError: The file to make exists, or there are no averaged weights, or no head.
    """
    if out.exists():
        raise UsageError(f"{out} exists, and is not overwritten; choose another name")
    spec = _without_first_weights(spec)
    network = build(spec, seed=0 if spec.train is None else spec.train.seed)
    report = load_weights(
        network,
        checkpoint,
        new_head=new_head,
        ema=ema,
        allow_missing=allow_missing,
        allow_unexpected=allow_unexpected,
    )
    save_weights(out, network.state_dict(), _header(spec, checkpoint, report))
    return report


def _without_first_weights(spec: Spec) -> Spec:
    """Forget which weights the spec starts from: the checkpoint's take their place."""
    return spec.model_copy(update={"model": spec.model.model_copy(update={"weights": None})})


def _header(spec: Spec, checkpoint: Path, report: LoadReport) -> WeightsHeader:
    """Write down what is known: a checkpoint has neither classes nor statistics."""
    data = spec.data
    normalize = data.normalize if data is not None else "auto"
    known = normalize if isinstance(normalize, Normalize) else None
    return WeightsHeader(
        spec=dump_spec(spec),
        mean=known and known.mean,
        std=known and known.std,
        preprocess=() if data is None else data.preprocess,
        source=Origin(file=checkpoint.name, layout=report.layout),
    )

"""Whole runs, small enough for a test: their spec, their images, and how they are driven."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from resnet_builder.data.interfaces import Stop
from resnet_builder.data.sources import InMemoryImages
from resnet_builder.data.splits import DataSplits
from resnet_builder.experiment import Experiment
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.records import MetricsLog, ResultRecord
from resnet_builder.spec.schema import Spec
from resnet_builder.training import session
from resnet_builder.training.callbacks import Callback, Progress, TrainStart
from resnet_builder.training.metrics import Metrics
from resnet_builder.training.result import Result
from resnet_builder.training.trainer import fit
from resnet_builder.weights.file import read_tensors
from tests.training.recipes import CLASSES, SIZE, small_net


def experiment(
    *, augment: Any = (), run: Any = None, published: Any = None, **train: Any
) -> Experiment:
    """Describe 3 epochs of 4 steps, with changes to the recipe."""
    recipe = {
        "batch_size": 8,
        "optimizer": {"type": "sgd", "lr": 0.05},
        "checkpoint_every": {"seconds": 3600.0},
        **({} if "steps" in train else {"epochs": 3}),
        **train,
    }
    spec = Spec.model_validate(
        {
            "name": "small",
            "model": {
                "num_classes": CLASSES,
                "in_channels": 3,
                "image_size": SIZE,
                "stem": {"type": "conv3x3", "channels": 8},
                "block": "basic",
                "shortcut": "pad",
                "stages": [{"channels": 8, "blocks": 1}],
            },
            "data": {"dataset": "synthetic", "augment": augment},
            "train": recipe,
            "run": {"device": "cpu", "precision": "fp32", **(run or {})},
            "published": published,
        }
    )
    return Experiment(spec, small_net().to("meta"))  # type: ignore[arg-type]


def source(count: int, seed: int) -> InMemoryImages:
    """Draw images whose class shows as a bright row in a noise that makes it hard to see."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    pictures = torch.randint(0, 200, (count, 3, SIZE, SIZE), generator=generator)
    pictures[torch.arange(count), :, labels] += 55
    return InMemoryImages(pictures.to(torch.uint8), labels)


def small_splits(*, validation: bool = True, test: bool = True, train: int = 34) -> DataSplits:
    """Make splits of 34, 11 and 13 images."""
    return DataSplits(
        train=source(train, seed=1),
        validation=source(11, seed=2) if validation else None,
        test=source(13, seed=3) if test else None,
        classes=tuple(f"class {number}" for number in range(CLASSES)),
        mean=(0.4, 0.4, 0.4),
        std=(0.2, 0.25, 0.3),
        fingerprint="small",
        validation_indices=(),
        notices=(),
    )


def train(path: Path, spec: Experiment, *, splits: DataSplits | None = None, **how: Any) -> Result:
    """Train a small network in ``path``, from its newest checkpoint if it has one."""
    extra = how.pop("extra", ())
    model = how.pop("model", None) or small_net(*extra, seed=spec.train.seed)
    path.joinpath("checkpoints").mkdir(parents=True, exist_ok=True)
    return fit(model, splits or small_splits(), spec, RunDirectory(path), **how)


def start_run(
    experiment: Experiment,
    directory: Path | None = None,
    *,
    fit_options: Any = None,
    **options: Any,
) -> ResultRecord:
    """Open a session and train; some options are for both."""
    both = ("should_stop", "ctx", "allow_spec_change")
    shared = {key: options[key] for key in both if key in options}
    with session.open_session(experiment, directory, **options) as found:
        if isinstance(found, ResultRecord):
            return found
        how = {**shared, **(fit_options or {})}
        return fit(found.model, found.data, experiment, found.run, **how).record


def resume_run(experiment: Experiment, directory: Path, **options: Any) -> ResultRecord:
    """Open a session, of the run in the directory if there is one, and train."""
    return start_run(experiment, directory, resume=True, **options)


def after(polls: int) -> Stop:
    """Stop when asked for this many times."""
    asked = iter(range(polls))
    return lambda: next(asked, None) is None


@dataclass
class Recorder(Callback):
    """Callback that records all events."""

    starts: list[TrainStart] = field(default_factory=list)
    progress: list[Progress] = field(default_factory=list)
    evaluations: list[tuple[int, str, bool]] = field(default_factory=list)
    saves: list[int] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)

    def on_train_start(self, start: TrainStart) -> None:
        self.starts.append(start)

    def on_progress(self, progress: Progress) -> None:
        self.progress.append(progress)

    def on_evaluate(self, step: int, split: str, metrics: Metrics, *, is_best: bool) -> None:
        self.evaluations.append((step, split, is_best))

    def on_checkpoint(self, step: int, path: Path) -> None:
        assert path.is_file()
        self.saves.append(step)

    def on_warning(self, message: str) -> None:
        self.warnings.append(message)

    def on_train_end(self, result: Result) -> None:
        self.results.append(result)


def outcome(path: Path) -> dict[str, Any]:
    """Return everything in a finished run that must not depend on when it was interrupted."""
    run = RunDirectory(path)
    rows = [row.model_dump(exclude=TIMES) for row in MetricsLog(run).read()]
    newest = sorted(run.checkpoints.glob("step-*.safetensors"))[-1]
    return {
        "best": run.best.read_bytes(),
        "last": run.last.read_bytes(),
        "rows": rows,
        "checkpoint": {
            name: tensor.numpy().tobytes() for name, tensor in read_tensors(newest)[0].items()
        },
    }


TIMES = {"seconds", "images_per_second", "data_share", "peak_memory"}

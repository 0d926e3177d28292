"""Model card of a published network: Markdown, with the Hub's metadata at its top."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from resnet_builder.comparison import brief
from resnet_builder.errors import counted, percent, points, printable
from resnet_builder.runs.records import (
    METRIC_WORDS,
    DataRecord,
    ResultRecord,
    package_version,
)
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.schema import Spec, ToRgb, is_file_name
from resnet_builder.summary import Summary
from resnet_builder.weights.file import WeightsHeader
from resnet_builder.weights.hub import library

HUB_DATASETS = {
    "cifar10": "uoft-cs/cifar10",
    "cifar100": "uoft-cs/cifar100",
    "fashion_mnist": "zalando-datasets/fashion_mnist",
}
"""Names on the Hub of datasets that a spec can name; `digits` is not there."""

CITATION = """\
@software{resnet_builder,
  title = {resnet-builder},
  author = {{The resnet-builder authors}},
  version = {VERSION}
}

@inproceedings{he2016deep,
  title = {Deep Residual Learning for Image Recognition},
  author = {He, Kaiming and Zhang, Xiangyu and Ren, Shaoqing and Sun, Jian},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  pages = {770--778},
  doi = {10.1109/CVPR.2016.90},
  year = {2016}
}
"""
"""BibTeX of this program and of the paper that its networks come from, as in CITATION.cff."""

DRAWING = "network.svg"
"""File with the drawing that the card shows."""

_MOST_CLASSES = 100
"""Class names that a card lists."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """Everything that a model card tells.

    Attributes:
        name: Name of the published network.
        spec: Resolved spec, without the paths of this machine.
        header: Header of the weights.
        summary: Summary of the network.
        result: Result of the run; ``None`` if its training is not finished.
        data: Images of the run, if they are recorded.
        total_steps: Steps of the recipe, as far as they are known.
        license: Licence of the weights, by the Hub's name.
        dataset: Name of the dataset on the Hub.
        repository: Repository on the Hub that the folder is for; ``None`` for a folder alone.
        timm: Name of the network in timm, if timm has it.
        files: Names of the files, each with what it is.
        plugins: Files of plugins that the network needs.
    """

    name: str
    spec: Spec
    header: WeightsHeader
    summary: Summary
    result: ResultRecord | None
    data: DataRecord | None
    total_steps: int | None
    license: str | None
    dataset: str | None
    repository: str | None
    timm: str | None
    files: dict[str, str]
    plugins: tuple[str, ...]

    @property
    def place(self) -> str:
        """Name of the folder, as commands in it, or from anywhere, take it."""
        return "." if self.repository is None else f"hf-hub:{self.repository}"


def model_card(found: Publication) -> str:
    """Text of a model card.

    Raises:
        UsageError: huggingface_hub is not installed.
    """
    hub = library()
    paragraphs = [
        f"# {_text(found.name)}",
        *_introduction(found),
        "## Results",
        *_results(found),
        "## Use",
        *_use(found),
        "## Training",
        *_training(found),
        "## Network",
        *_network(found),
        "## Limits",
        *_limits(found),
        "## Files",
        _table(("file", "contents"), [(_code(name), what) for name, what in found.files.items()]),
        "## Citation",
        f"```bibtex\n{CITATION.replace('VERSION', package_version())}```",
    ]
    metadata = hub.ModelCardData(**_metadata(found, hub)).to_yaml()
    return f"---\n{metadata}\n---\n\n" + "\n\n".join(paragraphs) + "\n"


def evaluation_entries(found: Publication) -> list[dict[str, Any]]:
    """Results in the form of the Hub's ``.eval_results/*.yaml``; none for data that is not there.

    Raises:
        UsageError: huggingface_hub is not installed.
    """
    hub = library()
    if found.dataset is None:
        return []
    entries = [
        hub.EvalResultEntry(
            dataset_id=found.dataset,
            task_id="default",
            value=value,
            notes=f"{name}, {split} images",
        )
        for name, _, split, value in _metrics(found)
    ]
    return list(hub.eval_result_entries_to_yaml(entries))


def _metadata(found: Publication, hub: Any) -> dict[str, Any]:
    """Arguments of the Hub's ``ModelCardData``."""
    weights = found.spec.model.weights
    results = [
        hub.EvalResult(
            task_type="image-classification",
            task_name="Image classification",
            dataset_type=found.dataset or _dataset(found),
            dataset_name=_dataset(found),
            dataset_split=split,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for name, kind, split, value in _metrics(found)
    ]
    metadata: dict[str, Any] = {
        "license": found.license,
        "library_name": "resnet-builder" if found.timm is None else "timm",
        "pipeline_tag": "image-classification",
        "tags": [
            *("image-classification", "resnet", "resnet-builder", "pytorch"),
            *([] if found.timm is None else ["timm"]),
        ],
        "datasets": None if found.dataset is None else [found.dataset],
        "metrics": list(dict.fromkeys(kind for _, kind, _, _ in _metrics(found))) or None,
        "model_name": found.name,
        "eval_results": results or None,
    }
    if weights is not None and weights.is_on_hub:
        metadata["base_model"] = weights.path.partition(":")[2].partition("@")[0]
        metadata["base_model_relation"] = "finetune"
    if not results:
        del metadata["model_name"]
    return metadata


def _metrics(found: Publication) -> Iterator[tuple[str, str, str, float]]:
    """Yield name, kind, split and value of each figure, on the test images if there are any."""
    result = found.result
    if result is None:
        return
    top1 = "exact match of all labels" if found.header.multi_label else "top-1 accuracy"
    test = (
        ("mAP", "mean_average_precision", result.test_map),
        (top1, "accuracy", result.test_top1),
        ("top-5 accuracy", "accuracy", result.test_top5),
    )
    val = (
        ("mAP", "mean_average_precision", result.val_map),
        (top1, "accuracy", result.val_top1),
    )
    split, metrics = ("validation", val) if result.test_top1 is None else ("test", test)
    for name, kind, value in metrics:
        if value is not None:
            yield name, kind, split, round(value, 6)


def _dataset(found: Publication) -> str:
    """Name of the dataset for readers."""
    if found.spec.data is None:
        return "unknown"
    dataset = found.spec.data.dataset
    path = dataset.options.get("path")
    return path if isinstance(path, str) else dataset.type


# Paragraphs.


def _introduction(found: Publication) -> Iterator[str]:
    model = found.spec.model
    channels, height, width = model.image_shape
    kinds = list(dict.fromkeys((stage.block or model.block).type for stage in model.stages))
    answer = (
        f"says which of {model.num_logits:,} classes each has, which may be several or none"
        if found.header.multi_label
        else f"tells {model.num_logits:,} classes apart"
    )
    yield (
        f"An image classifier: a residual network of depth {found.summary.depth} with "
        f"{found.summary.parameters:,} parameters, of {' and '.join(map(_code, kinds))} blocks "
        f"with shortcuts of type {_code(model.shortcut.type)}. It takes images of {channels} x "
        f"{height} x {width} (channels x height x width) and {answer}. It was trained on "
        f"{_code(_dataset(found))} with resnet-builder {package_version()}."
    )
    if found.result is None:
        total = "" if found.total_steps is None else f" of {found.total_steps:,}"
        yield (
            f"**Its training is not finished.** These are the best weights so far, of step "
            f"{found.header.step:,}{total}. They were not tested."
        )


def _results(found: Publication) -> Iterator[str]:
    result, data = found.result, found.data
    if result is None:
        yield "There are none yet."
        return
    counts = {} if data is None else data.images
    published, top1 = result.published, _top1(found)
    rows: list[tuple[str, str, float | None, float | None, float | None]] = [
        ("test mAP", "test", result.test_map, None, None),
        (
            f"test {top1}",
            "test",
            result.test_top1,
            published.test_top1 if published else None,
            published.test_top1_difference if published else None,
        ),
        (
            "test top-5",
            "test",
            result.test_top5,
            published.test_top5 if published else None,
            published.test_top5_difference if published else None,
        ),
        ("validation mAP", "val", result.val_map, None, None),
        (f"validation {top1}", "val", result.val_top1, None, None),
    ]
    if result.monitored in {"macro_recall", "macro_f1"} and result.test_macro is not None:
        word, key = METRIC_WORDS[result.monitored], result.monitored.removeprefix("macro_")
        rows.append((f"test {word}", "test", getattr(result.test_macro, key), None, None))
        rows.append((f"validation {word}", "val", result.monitored_value, None, None))
    head = ["figure", "images", "this network"]
    cells = [
        [name, f"{counts.get(split, 0):,}", percent(ours), percent(theirs), points(difference)]
        for name, split, ours, theirs, difference in rows
        if ours is not None
    ]
    if published is None:
        cells = [row[:3] for row in cells]
    else:
        head += ["published", "difference in points"]
    if not cells:
        yield "Nothing was measured: there were neither test images nor validation images."
    else:
        yield _table(head, cells, left=1)
    if published is not None:
        yield f"The published figures are those of {_text(published.source)}."
    yield " ".join(_how_chosen(found, result))


def _top1(found: Publication) -> str:
    """Word for the share of images that are classified right, with all their labels."""
    return "all labels right" if found.header.multi_label else "top-1"


def _how_chosen(found: Publication, result: ResultRecord) -> Iterator[str]:
    """Yield sentences on which images chose the weights, and on how certain the figures are."""
    counts = {} if found.data is None else found.data.images
    step = f"The weights are those of step {result.selected_step:,} of {result.steps:,}"
    if result.selected_on == "val":
        metric = METRIC_WORDS[result.monitored or ("top1" if result.val_map is None else "map")]
        images = counted(counts.get("val", 0), "validation image")
        yield f"{step}: those with the best {metric} on {images}, on which nothing was trained."
    else:
        yield f"{step}, the last; no images chose them."
    if result.test_top1 is not None:
        yield "The test images were read once, at the end."
        if total := counts.get("test", 0):
            low, high = (percent(share) for share in wilson(result.test_top1, total))
            images = counted(total, "test image")
            yield f"With {images}, the 95 % interval of {_top1(found)} is {low} to {high}."
    yield f"This is one training, of seed {result.seed}; other seeds give somewhat other figures."


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of ``count`` images (Wilson 1927)."""
    z = 1.959964
    middle = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count)
    half *= math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    return max(0.0, middle - half), min(1.0, middle + half)


def _use(found: Publication) -> Iterator[str]:
    place, plugins = found.place, "".join(f" --plugin {name}" for name in found.plugins)
    where = "in this folder" if found.repository is None else "from anywhere"
    weights = "model.safetensors" if found.repository is None else found.place
    data = " --data my_images" if _has_own_images(found) else ""
    yield f"With resnet-builder {package_version()}, {where}:"
    yield (
        "```sh\n"
        f"resnet-build predict {place} image.png --top 3{plugins}\n"
        f"resnet-build evaluate {place}{data}{plugins}\n"
        "```"
    )
    given = f", plugins={list(found.plugins)}" if found.plugins else ""
    yield (
        "```python\n"
        "from resnet_builder import load_run\n"
        "\n"
        f'run = load_run("{place}"{given}, normalize=True)\n'
        'for one in run.predict("image.png", top=3).images[0].predictions:\n'
        '    print(one.name, f"{one.probability:.3f}")\n'
        "model = run.model  # takes batches of pixels, from 0 to 1 or uint8, and gives logits\n"
        "```"
    )
    yield (
        "To train it further on a folder of your own images, with `spec.yaml` of "
        f"{'this folder' if found.repository is None else 'this repository'}:"
    )
    yield (
        "```sh\n"
        "resnet-build train spec.yaml --data my_images \\\n"
        f"  --set model.weights.path={weights} --set model.weights.new_head=true{plugins}\n"
        "```"
    )
    if found.timm is not None:
        source = "local-dir:." if found.repository is None else found.place
        yield f"timm loads it too, as its `{found.timm}`:"
        yield (
            "```python\n"
            "import timm\n"
            "\n"
            f'model = timm.create_model("{source}", pretrained=True).eval()\n'
            "transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))\n"
            "```"
        )
    yield "resnet-builder prepares images as in training. Other programs have to do it like this:"
    yield from _preprocessing(found)


def _has_own_images(found: Publication) -> bool:
    return found.spec.data is None or "path" in found.spec.data.dataset.options


def _preprocessing(found: Publication) -> Iterator[str]:
    header = found.header
    _, height, width = found.spec.model.image_shape
    steps = [
        f"{number}. {_code(dump_value(step.model_dump(exclude_defaults=True)))}"
        for number, step in enumerate(header.preprocess, start=1)
    ]
    steps.append(f"{len(steps) + 1}. pixels from 0 to 1, of {height} x {width} (height x width)")
    if header.mean is not None and header.std is not None:
        mean, std = (
            ", ".join(f"{one:.6g}" for one in values) for values in (header.mean, header.std)
        )
        steps.append(f"{len(steps) + 1}. minus the mean ({mean}), divided by ({std}), by channel")
    yield "\n".join(steps)
    if found.timm is not None and not _is_known_to_timm(found):
        yield "timm's transform differs from these steps: it can resize and crop, and nothing else."


def _is_known_to_timm(found: Publication) -> bool:
    from resnet_builder.publishing.timm_config import prepares_alike

    return prepares_alike(found.header.preprocess)


def _training(found: Publication) -> Iterator[str]:
    train, data, result = found.spec.train, found.spec.data, found.result
    weights = found.spec.model.weights
    if _has_own_images(found):
        again = "Its images are not published"
    else:
        again = "`resnet-build train spec.yaml` trains it again"
    if weights is not None and is_file_name(weights.path):
        again += "; it starts from weights that are not published"
    yield f"The whole experiment is `spec.yaml`. {again}."
    rows: list[tuple[str, str]] = []
    if data is not None:
        rows.append(("data", _code(dump_value(brief(("data", "dataset"), data.dataset)))))
        if found.data is not None:
            images = found.data.images
            names = {"train": "training", "val": "validation", "test": "test"}
            rows.append(
                (
                    "images",
                    ", ".join(f"{images[key]:,} {names[key]}" for key in names if key in images),
                )
            )
        augment = brief(("data", "augment"), data.augment)
        if augment:
            rows.append(("augmentation", _code(dump_value(augment))))
        if data.sampler != "uniform":
            rows.append(("sampler", _code(data.sampler)))
    if weights is not None:
        digest = "" if found.data is None else f", SHA-256 {found.data.pretrained_sha256}"
        rows.append(("starts from", f"{_code(weights.path)}{digest}"))
    if train is not None:
        length = f"{train.steps:,} steps" if train.epochs is None else f"{train.epochs:,} epochs"
        done = "" if result is None else f", {result.steps:,} steps"
        early = " (stopped early)" if result is not None and result.early_stopped else ""
        rows.append(("length", f"{length}{done if train.epochs is not None else ''}{early}"))
        rows.append(("batch size", f"{train.batch_size:,}"))
        given = brief(("train",), train)
        shown = {"epochs", "steps", "batch_size", "seed"}
        hidden = {"checkpoint_every", "keep_checkpoints", "activation_checkpointing"}
        for key, value in given.items():
            if key not in shown | hidden:
                rows.append((key.replace("_", " "), _code(dump_value(value))))
        rows.append(("seed", str(train.seed)))
    if result is not None:
        rows.append(("computed", f"in {result.precision}, on {_text(result.device)}"))
        rows.append(("time", f"{result.seconds:,.0f} s, {result.images_per_second:,.0f} images/s"))
        versions = ", ".join(f"{name} {number}" for name, number in result.versions.items())
        rows.append(("versions", _text(versions)))
    yield _table(("recipe", "value"), rows)


def _network(found: Publication) -> Iterator[str]:
    yield f"![{_text(found.name)}, drawn]({DRAWING})"
    yield f"Depth {found.summary.depth_arithmetic}. MACs are multiply-adds for one image."
    classes = found.header.classes
    if classes is None:
        return
    listed = ", ".join(
        _code(name) if name == str(number) else f"{number} {_code(name)}"
        for number, name in enumerate(classes[:_MOST_CLASSES])
    )
    more = len(classes) - _MOST_CLASSES
    rest = (
        f", and {more:,} more, which are in the header of `model.safetensors`" if more > 0 else ""
    )
    yield f"Classes, in the order of the logits: {listed}{rest}."


def _limits(found: Publication) -> Iterator[str]:
    channels, height, width = found.spec.model.image_shape
    header = found.header
    is_grey = channels == 1 or any(isinstance(step, ToRgb) for step in header.preprocess)
    limits = [
        "The figures hold for images like those of the training. For other images, evaluate it "
        "first on some of your own.",
        "A probability of the softmax is no measure of certainty: it may be high for a mistake.",
        f"Details that vanish at {height} x {width} pixels cannot be told apart.",
    ]
    if header.multi_label:
        limits[1] = "Probabilities are sigmoids, one for each class, and are not calibrated."
    else:
        limits.insert(
            1, "It gives one of its classes to every image, also to an image of none of them."
        )
    if channels == 1 and is_grey:
        limits.append("It takes grey images; colours are dropped.")
    if found.data is not None and found.data.class_counts:
        least, most = (pick(found.data.class_counts.values()) for pick in (min, max))
        if most > 2 * least:
            limits.append(
                f"Its classes had between {least:,} and {most:,} training images each; rare ones "
                "may be recognised less well."
            )
    yield "\n".join(f"- {limit}" for limit in limits)


# Markdown.


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: int | None = None) -> str:
    """Table in Markdown, of cells in Markdown; the columns from ``left`` on hold numbers."""
    left = len(head) if left is None else left
    rule = ["---" if number < left else "--:" for number in range(len(head))]
    lines = [head, rule, *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    """Text with everything escaped that Markdown or HTML would obey."""
    return re.sub(r"([\\`*{}\[\]<>#|!&~$]|\b_|_\b)", r"\\\1", printable(text))


def _code(text: str) -> str:
    """Text as code, also in a cell of a table."""
    shown = printable(text).replace("|", "\\|")
    fence = "`" * (max(map(len, re.findall("`+", shown)), default=0) + 1)
    space = " " if "`" in shown else ""
    return f"{fence}{space}{shown}{space}{fence}"

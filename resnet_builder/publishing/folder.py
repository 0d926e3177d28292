"""A published folder: weights, spec, model card, report and result, written as one."""

import html
import json
import os
import platform
import re
import secrets
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import yaml

from resnet_builder.errors import CheckpointError, StorageError, UsageError
from resnet_builder.inference import TrainedModel, load_model
from resnet_builder.publishing.card import (
    DRAWING,
    HUB_DATASETS,
    Publication,
    evaluation_entries,
    model_card,
)
from resnet_builder.publishing.timm_config import timm_architecture, timm_config, timm_tensors
from resnet_builder.publishing.upload import push as upload
from resnet_builder.reports.drawing import draw_svg
from resnet_builder.runs.directory import RunDirectory
from resnet_builder.runs.files import TEMPORARY, storage_errors, sync_directory, write_atomically
from resnet_builder.runs.records import DataRecord, ResultRecord
from resnet_builder.runs.status import resume_command, run_status
from resnet_builder.spec.dump import dump_spec
from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part, Section
from resnet_builder.summary import summarize
from resnet_builder.system import open_regular
from resnet_builder.weights.file import read_metadata, save_weights
from resnet_builder.weights.hub import CARD, CONFIG, WEIGHTS, library

SPEC, RESULT, REPORT = "spec.yaml", "result.json", "report.html"
EVALUATION = ".eval_results/resnet-builder.yaml"

OWN_FILES = (CARD, WEIGHTS, SPEC, RESULT, REPORT, CONFIG, EVALUATION, DRAWING)
"""Files that `publish` writes; and plugins of the network."""

FILES = "published_files"
"""Name of the list of files in the metadata of published weights; others are not replaced."""


@dataclass(frozen=True, slots=True)
class PublishReport:
    """Outcome of publishing.

    Attributes:
        run: Run directory.
        folder: The folder that was written.
        name: Name of the published network.
        files: Its files.
        bytes: Size of all files.
        step: Step of the weights.
        finished: Whether the training is finished.
        timm: Name of the network in timm, if timm has it.
        url: Address on the Hub, if it was pushed.
        notices: Notices for the user, one line each.
    """

    run: Path
    folder: Path
    name: str
    files: tuple[str, ...]
    bytes: int
    step: int | None
    finished: bool
    timm: str | None
    url: str | None
    notices: tuple[str, ...]


def publish(
    run: Path,
    folder: Path,
    *,
    name: str | None = None,
    license: str | None = None,
    dataset: str | None = None,
    overwrite: bool = False,
    unfinished: bool = False,
    with_report: bool = True,
    push: str | None = None,
    private: bool | None = None,
    plugins: Sequence[str] = (),
) -> PublishReport:
    """Write a run's best weights, with all that is needed to use them, to a folder.

    The folder appears as a whole. No path of this machine is in it.

    Args:
        run: Run directory.
        folder: Folder to make.
        name: Name of the published network; by default the spec's.
        license: Licence of the weights, by the Hub's name: ``mit``, ``cc-by-4.0``.
        dataset: Name of the dataset on the Hub; by default that of the dataset of the spec, if it
            is there.
        overwrite: Whether files that an earlier call wrote are replaced; others stay.
        unfinished: Whether a run that is not finished is published, with its best weights so far.
        with_report: Whether the run's ``report.html`` is published, which may show images.
        push: Repository of the Hub, ``USER/NAME``, that the folder is uploaded to, and that its
            card names.
        private: Whether a new repository is private, as for :func:`~.upload.push`.
        plugins: Plugins that may be imported.

    Raises:
        CheckpointError: The weights are damaged.
        HubError: The Hub cannot be reached, or refuses; the folder is written then.
        SpecError: The spec cannot be used here; a plugin without consent, for example.
        StorageError: A file cannot be read or written.
        UsageError: The run is not finished, or has no weights; the folder is in use; the name of
            the repository is none; or huggingface_hub is not installed.
    """
    library()  # better missed before the work than after it
    if push is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", push, re.ASCII):
        raise UsageError(f"{push} is no repository: name it as USER/NAME")
    if private is not None and push is None:
        raise UsageError("a repository is private or public: --private and --public need --push")
    directory = RunDirectory.open(run)
    check_folder(folder, overwrite=overwrite)
    earlier = _published_files(folder)
    if not directory.is_finished and not unfinished:
        raise UsageError(
            f"{run} is not finished; to finish it: {resume_command(run)}; to publish its best "
            "weights so far, add --unfinished"
        )
    trained = load_model(run, plugins=plugins)
    notices = list(trained.notices)
    found = _publication(directory, trained, name, license, dataset, push)
    report = _report(directory, trained.spec, notices) if with_report else None
    plugin_files = _plugin_files(trained.spec)
    _refuse_others(folder, plugin_files, earlier)
    found = _with_files(found, report, plugin_files)
    with _staged(folder) as staged:
        contents = _contents(found, report, trained.spec)
        for file, content in contents.items():
            (staged / file).parent.mkdir(exist_ok=True)
            write_atomically(staged / file, [content])
        tensors = trained.network.state_dict()
        if found.timm is not None:
            tensors = timm_tensors(found.timm, tensors)
        files = tuple(sorted([*contents, WEIGHTS]))
        # Some programs look for "format" before they read a file.
        text = {"format": "pt", FILES: json.dumps(files)}
        save_weights(staged / WEIGHTS, tensors, found.header, text=text)
        size = sum((staged / file).stat().st_size for file in files)
        _move(staged, folder, files, earlier)
    url = None
    if push is not None:
        outdated = [file for file in OWN_FILES if file not in files]
        url = upload(folder, push, files=files, outdated=outdated, private=private)
    return PublishReport(
        run=run,
        folder=folder,
        name=found.name,
        files=files,
        bytes=size,
        step=found.header.step,
        finished=found.result is not None,
        timm=found.timm,
        url=url,
        notices=tuple(notices),
    )


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Check that a published folder can be written to a place.

    Args:
        folder: The folder.
        overwrite: Whether files that an earlier call wrote are replaced.

    Raises:
        CheckpointError: Its weights are damaged.
        StorageError: It cannot be read.
        UsageError: Something else is there, or files that no earlier call wrote.
    """
    for parent in Path(os.path.realpath(folder)).parents:
        if (parent / SPEC).is_file() and RunDirectory(parent).metrics.exists():
            raise UsageError(f"{folder} is inside the run {parent}: name a folder outside it")
    if not os.path.lexists(folder):
        return
    if not folder.is_dir():
        raise UsageError(f"{folder} exists, and is no folder: name another one")
    with storage_errors("read", folder):
        if not any(folder.iterdir()):
            return
    run = RunDirectory(folder)
    if any(path.exists() for path in (run.checkpoints, run.metrics, run.best)):
        raise UsageError(f"{folder} is a run: name another folder")
    if not overwrite:
        raise UsageError(
            f"{folder} is not empty: name another folder; or add --overwrite, which replaces what "
            "an earlier publish wrote there, and nothing else"
        )
    _refuse_others(folder, OWN_FILES, _published_files(folder))


def _refuse_others(folder: Path, files: Iterable[str], earlier: Collection[str]) -> None:
    """Refuse to replace files that no earlier call wrote.

    Raises:
        UsageError: There are such files.
    """
    others = [file for file in files if os.path.lexists(folder / file) and file not in earlier]
    if others:
        raise UsageError(
            f"{folder} has files that publish did not write, and would replace: "
            f"{', '.join(others)}; move them away, or name another folder"
        )


def _published_files(folder: Path) -> frozenset[str]:
    """Files that an earlier call wrote to a folder, by the list in its weights; or none.

    Where it was ended while it replaced files, its weights are those beside them; and there may be
    files of the call before it.
    """
    weights = [folder / WEIGHTS, *folder.glob(f"{TEMPORARY}*/{WEIGHTS}")]
    for path in weights:
        try:
            told = json.loads(read_metadata(path)[FILES])
        except (CheckpointError, KeyError, ValueError):
            continue
        # The folder may be a stranger's: its list is believed of such names as a call writes.
        names = [one for one in told if isinstance(one, str)] if isinstance(told, list) else []
        plugins = {name for name in names if name.endswith(".py") and Path(name).name == name}
        files = plugins.union(OWN_FILES)
        return frozenset(files.intersection(names) if path == weights[0] else files)
    return frozenset()


def _publication(
    run: RunDirectory,
    trained: TrainedModel,
    name: str | None,
    license: str | None,
    dataset: str | None,
    repository: str | None,
) -> Publication:
    """Facts for the model card, without the paths of this machine."""
    spec = _without_paths(trained.spec)
    text = dump_spec(spec)
    result = ResultRecord.read(run.result) if run.is_finished else None
    if result is not None:  # it names the digest of the spec beside it
        result = result.model_copy(update={"spec_sha256": sha256(text.encode()).hexdigest()})
    known = None if spec.data is None else HUB_DATASETS.get(spec.data.dataset.type)
    return Publication(
        name=name or spec.name,
        spec=spec,
        header=trained.header.model_copy(update={"spec": text}),
        summary=summarize(trained.spec),
        result=result,
        data=_data_record(run),
        total_steps=run_status(run).total_steps,
        license=license,
        dataset=dataset or known,
        repository=repository,
        timm=timm_architecture(trained.spec.model),
        files={},
        plugins=(),
    )


def _data_record(run: RunDirectory) -> DataRecord | None:
    """Record of the run's images, if it is there and sound."""
    try:
        return DataRecord.read(run.data)
    except (CheckpointError, StorageError):
        return None


def _without_paths(value: Any) -> Any:
    """Copy of a section, a part or a value in which paths of this machine have no folders."""
    if isinstance(value, Part):
        options = {key: _without_paths(option) for key, option in value.options.items()}
        return Part.model_validate({"type": value.type, **options})
    if isinstance(value, Section):
        given = {key: _without_paths(getattr(value, key)) for key in type(value).model_fields}
        return value.model_copy(update=given)
    if isinstance(value, tuple | list):
        return type(value)(_without_paths(item) for item in value)
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items()}
    if isinstance(value, str) and "://" in value:
        return re.sub(r"//[^/@]*@", "//", value)  # a URL without the name and password of a user
    return os.path.basename(value) if _is_private(value) else value


def _is_private(value: object) -> bool:
    return isinstance(value, str) and os.path.isabs(value)


def _private_paths(value: Any) -> set[str]:
    """Paths of this machine in a section, a part or a value."""
    if isinstance(value, Part):
        value = value.options
    elif isinstance(value, Section):
        value = {key: getattr(value, key) for key in type(value).model_fields}
    if isinstance(value, dict):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return {path for item in value for path in _private_paths(item)}
    return {value} if _is_private(value) else set()


def _report(run: RunDirectory, spec: Spec, notices: list[str]) -> bytes | None:
    """The run's report without paths of this machine; ``None`` if it has none, with a notice."""
    path = run.report
    if not path.is_file():
        notices.append(
            f"{run.path} has no {REPORT}, so none is published; to write it: "
            f"resnet-build report {run.path}"
        )
        return None
    with storage_errors("read", path), open_regular(path) as file:
        text = file.read().decode("utf-8", "replace")
    here = {str(run.path.absolute()), os.path.realpath(run.path)}
    # Encoded images may contain any letters.
    pieces = re.split(r"(data:[^\"')\s]+)", text)
    pieces[::2] = [_shortened(piece, _private_paths(spec) | here) for piece in pieces[::2]]
    text, shown = "".join(pieces), "".join(pieces[::2])
    if left := _trace(shown):
        notices.append(
            f"{path} names {left}, so it is not published; to write it again: "
            f"resnet-build report {run.path}"
        )
        return None
    notices.append(f"{REPORT} is published, too; it may show images; --no-report leaves it out")
    return text.encode()


def _shortened(text: str, private: Collection[str]) -> str:
    """Text in which each path, and each end of it that has folders, is its last part alone."""
    ends: dict[str, str] = {}
    for path in private:
        parts = Path(path).parts
        for count in range(2, len(parts) + 1):
            end = str(Path(*parts[-count:]))
            ends |= dict.fromkeys((end, html.escape(end), json.dumps(end)[1:-1]), parts[-1])
    any_end = "|".join(map(re.escape, sorted(ends, key=len, reverse=True)))
    return re.sub(rf"(?<![\w/])(?:{any_end})(?![\w])", lambda found: ends[found[0]], text)


def _trace(text: str) -> str | None:
    """First path of this machine in a text, or its name; ``None`` if there is neither."""
    names = [str(Path.home()), platform.node()]
    found = next(
        (one for one in names if len(one) > 4 and re.search(rf"{re.escape(one)}\b", text)), None
    )
    roots = "|".join(re.escape(name) for name in os.listdir(os.sep))
    path = re.search(rf"(?<![\w<.:/])/(?:{roots})/[\w.~-]+", text)
    return path[0] if path else found


def _plugin_files(spec: Spec) -> dict[str, Path]:
    """Files of plugins by their names; modules are left to whoever uses the network."""
    files: dict[str, Path] = {}
    for plugin in (Path(name) for name in spec.plugins if name.endswith(".py")):
        if plugin.name in files:
            raise UsageError(f"{files[plugin.name]} and {plugin} have one name: rename one of them")
        files[plugin.name] = plugin
    return files


def _with_files(
    found: Publication, report: bytes | None, plugins: Mapping[str, Path]
) -> Publication:
    """Facts with the list of all files."""
    files = {
        WEIGHTS: "weights; the header has the spec, the classes and the preprocessing",
        SPEC: "the whole experiment: network, data, recipe",
        DRAWING: "drawing of the network",
    }
    if found.result is not None:
        files[RESULT] = "figures, each class's precision and recall, time, versions"
    if report is not None:
        files[REPORT] = "report of the training, as one page"
    if found.timm is not None:
        files[CONFIG] = "timm's configuration"
    if evaluation_entries(found):
        files[EVALUATION] = "figures for the Hub's leaderboards"
    files |= dict.fromkeys(plugins, "code of the network, which `--plugin` allows")
    return replace(found, files=files, plugins=tuple(plugins))


def _contents(found: Publication, report: bytes | None, spec: Spec) -> dict[str, bytes]:
    """Contents of all files but the weights, by name."""
    contents = {
        CARD: model_card(found).encode(),
        SPEC: found.header.spec.encode(),
        DRAWING: draw_svg(found.summary).encode(),
    }
    if found.result is not None:
        contents[RESULT] = found.result.to_json(indent=2).encode() + b"\n"
    if report is not None:
        contents[REPORT] = report
    if found.timm is not None:
        config = timm_config(found.timm, found.spec, found.header, found.license)
        contents[CONFIG] = json.dumps(config, indent=2).encode() + b"\n"
    if entries := evaluation_entries(found):
        contents[EVALUATION] = yaml.safe_dump(entries, sort_keys=False).encode()
    for name, path in _plugin_files(spec).items():
        with storage_errors("read", path), open_regular(path) as file:
            contents[name] = file.read()
    return contents


@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Context with a new folder on the disk of another one; it is removed if it is left over."""
    with storage_errors("write in" if folder.is_dir() else "make", folder):
        is_in_use = folder.is_dir() and any(folder.iterdir())
        parent = folder if is_in_use else folder.absolute().parent
        staged = parent / f"{TEMPORARY}{secrets.token_hex(8)}"
        parent.mkdir(parents=True, exist_ok=True)
        staged.mkdir()
    try:
        with storage_errors("write in", folder):
            yield staged
    except StorageError as error:  # the user knows nothing of the staged folder
        raise StorageError(str(error).replace(str(staged), str(folder))) from error
    finally:
        # A folder that lost its old weights is known by the new ones, which get their place last.
        if (folder / WEIGHTS).exists() or not (is_in_use and (staged / WEIGHTS).exists()):
            shutil.rmtree(staged, ignore_errors=True)
    if is_in_use:
        for left in folder.glob(f"{TEMPORARY}*"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)


def _move(staged: Path, folder: Path, files: Sequence[str], earlier: Collection[str]) -> None:
    """Give staged files their place; without its weights, a folder is not complete."""
    with storage_errors("write", folder):
        if staged.parent != folder:
            with suppress(FileNotFoundError):
                folder.rmdir()  # it is empty
            staged.rename(folder)
            sync_directory(folder.parent)
            return
        for old in (WEIGHTS, *(file for file in sorted(earlier) if file != WEIGHTS)):
            (folder / old).unlink(missing_ok=True)
        sync_directory(folder)
        for file in sorted(files, key=lambda file: file == WEIGHTS):
            (folder / file).parent.mkdir(exist_ok=True)
            os.replace(staged / file, folder / file)
        sync_directory(folder)

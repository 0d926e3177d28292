"""Composition of a spec: files that it extends, fragments (``--with``) and overrides (``--set``).

Overrides are also the flags that stand for a key (``--lr 0.1``), and those that scale the recipe
(``--epochs 10``).

All of this happens on plain nodes, before any validation.
"""

import os
import re
import shlex
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from resnet_builder.errors import Problem, SpecError, SpecPath, UsageError, counted, nearest
from resnet_builder.spec.bundled import (
    bundled_file,
    bundled_names,
    find_spec,
    is_bundled,
    is_path,
    recipe_names,
)
from resnet_builder.spec.diagnostics import missing_space
from resnet_builder.spec.dump import plain_data
from resnet_builder.spec.keys import FLAGS, are_of_sweep
from resnet_builder.spec.scaling import scale_recipe
from resnet_builder.spec.schema import Spec, models_at, short_key
from resnet_builder.spec.section import Part
from resnet_builder.spec.yaml_source import (
    MAX_DEPTH,
    Document,
    Node,
    Place,
    Source,
    document_of,
    parse_yaml,
    plain,
    read_yaml,
    source_of,
)

COMMAND_LINE = "<command line>"
WITH = "<command line>:--with"
SET = "<command line>:--set"
DATA = "<command line>:--data"

OWN = ("name", "expect", "published")
"""Keys that belong to the file they stand in, and that no other file inherits."""

_SECTIONS = {"model": "the network", "data": "the data", "train": "the recipe"}

# What a file claims of itself, and the sections that it claims it of.
_CLAIMS = {"expect": {"model"}, "published": {"model", "data", "train"}}

_CLAIM_WORDS = {
    "expect": "the expected counts (`expect`)",
    "published": "the published result (`published`)",
}

# With another value of these, an experiment is repeated, and its published result still holds.
_INCIDENTAL = {"data.split_seed", "train.seed"} | {
    f"train.{key}" for key in ("evaluate_every", "checkpoint_every", "keep_checkpoints")
}

# What is said for one dataset, and does not hold for another.
_FOR_DATASET = (
    ("model", "num_classes"),
    ("model", "in_channels"),
    ("data", "validation"),
    ("data", "split_seed"),
    ("data", "preprocess"),
    ("data", "normalize"),
)

TABLE_ENDINGS = (".csv", ".tsv", ".parquet")
"""Endings of tables of labels."""

IMAGE_ENDINGS = frozenset(
    (
        *(".apng", ".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm"),
        *(".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
    )
)
"""Endings of files that are images; others are, too, if their first bytes say so."""

_MAX_FILES = 64
_UNITS = {"steps", "epochs", "seconds"}
_ARGUMENTS = {"--data": "data=", "--with": "fragments=[...]"}

SpecSource = str | Path | Mapping[str, object] | Spec
"""A path, a bundled spec's name, a mapping, or a resolved spec."""


@dataclass(frozen=True, slots=True)
class Composition:
    """Composed nodes of a spec.

    Attributes:
        root: Nodes of the whole spec.
        sources: Sources of its values, the spec itself first.
        problems: Problems of the sources by themselves.
        notices: Notices for the user, one line each.
    """

    root: Node
    sources: tuple[Source, ...]
    problems: tuple[Problem, ...]
    notices: tuple[str, ...]


def read_document(source: SpecSource) -> Document:
    """Read a spec's own file, or take its mapping or its resolved values.

    Raises:
        SpecError: It cannot be read.
        StorageError: The file cannot be read.
        UsageError: It is neither.
    """
    if isinstance(source, Spec):
        return document_of(plain_data(source))
    if isinstance(source, Mapping):
        return document_of(source)
    if not isinstance(source, str | Path):
        raise UsageError(f"a spec is a path, a name or a mapping, not {type(source).__name__}")
    return read_yaml(source if isinstance(source, Path) else find_spec(source))


def compose(
    document: Document,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    data: str | Path | None = None,
) -> Composition:
    """Compose a spec with all that is laid under and over it.

    Args:
        document: The spec's own file or mapping.
        overrides: ``path.to.key=value``, as ``--set``; or a flag and its value, as ``--lr 0.1``.
            The recipe is scaled first (``--epochs``, ``--steps``); other flags are laid on last.
        fragments: Fragments to lay over the spec: paths, or names of bundled specs or recipes.
        data: Images to use instead of the spec's dataset, as ``--data``.

    Raises:
        SpecError: Another file, a fragment or an override cannot be read.
        StorageError: A file cannot be read.
        UsageError: Overrides or fragments are a text, not a list of them.
    """
    for name, given in (("overrides", overrides), ("fragments", fragments)):
        if isinstance(given, str | Path | Mapping):
            shown = repr(str(given)) if isinstance(given, str | Path) else "'key=value', ..."
            raise UsageError(f"{name} takes a list: [{shown}]")
    composer = _Composer(document.source)
    try:
        root = written = composer.with_bases(document)
        in_files = len(composer.datasets)
        for fragment in fragments:
            root = composer.merged(root, composer.fragment(fragment))
        if data is not None:
            root = composer.merged(root, composer.dataset(data))
        for argument in sorted(overrides, key=_turn):
            root = composer.overridden(root, argument)
        composer.check_milestones(root)
    except SpecError as error:
        raise SpecError([*composer.problems, *error.errors]) from error
    root, claims, changed = _without_stale_claims(root, written)
    notices = [*composer.notices]
    notices += list(_dataset_notices(composer.datasets[:in_files], root, ()))
    others = list(_dataset_notices(composer.datasets[in_files:], root, claims))
    if claims and not others:
        others.append(
            f"not compared with {' and '.join(_CLAIM_WORDS[key] for key in claims)}: "
            f"the command line changes {changed}"
        )
    return Composition(root, tuple(composer.sources), tuple(composer.problems), (*notices, *others))


def absolute_path(path: str, place: Place) -> str:
    """Make a path absolute that a spec names.

    It counts from the file in which it stands; from the working directory on the command line, in a
    mapping, and in a bundled file, beside which no user has files.
    """
    file = place.source.path
    base = Path() if file is None or is_bundled(file) else file.parent
    return os.path.realpath(base / path)


def dataset_at(path: str | Path) -> dict[str, str]:
    """Dataset that ``--data PATH`` stands for: a file is a table of labels, all else a folder."""
    ending = os.path.splitext(path)[1].lower()
    is_file = os.path.isfile(path) and ending not in IMAGE_ENDINGS
    is_table = is_file or (ending in TABLE_ENDINGS and not os.path.isdir(path))
    return {"type": "image_table" if is_table else "image_folder", "path": str(path)}


@dataclass(frozen=True, slots=True)
class _OtherDataset:
    """A dataset that was laid over another one.

    Attributes:
        old: The one below, if there was any.
        new: The one above.
        left_out: What was said for the one below, and holds no more.
    """

    old: Node | None
    new: Node
    left_out: Collection[SpecPath]


class _Composer:
    """Reads what is composed; collects the sources and their problems.

    Args:
        main: Source of the spec itself.
    """

    def __init__(self, main: Source) -> None:
        self.main = main
        self.sources: list[Source] = []
        self.problems: list[Problem] = []
        self.notices: list[str] = []
        self._given: dict[str, str] = {}
        self._milestones: list[tuple[Node, str]] = []
        self.datasets: list[_OtherDataset] = []

    def merged(self, below: Node, above: Node) -> Node:
        """Lay one over the other; note milestones whose unit another length takes away.

        Another dataset takes away what was said for the one before it.
        """
        below = self._without_dataset(below, above)
        lower, upper = (_entries(_entries(node).get("train")) for node in (below, above))
        schedule = _entries(lower.get("schedule"))
        milestones, before = schedule.get("milestones"), _unit(lower)
        if milestones and before and "unit" not in schedule and _unit(upper) not in {"", before}:
            self._milestones.append((milestones, before))
        return merge(below, above, main=self.main)

    def _without_dataset(self, below: Node, above: Node) -> Node:
        """Leave out what a spec says for its dataset, if another one is laid over it.

        A name or a mapping with ``type`` names a dataset; a mapping without changes its options.
        """
        old, new = (_entries(_entries(node).get("data")).get("dataset") for node in (below, above))
        if new is None or not _names_part(new) or _dataset(old) == _dataset(new):
            return below
        left_out: list[SpecPath] = []
        sections = dict(_entries(below))
        for section, key in _FOR_DATASET:
            entries = _entries(sections.get(section))
            node = entries.get(key)
            # All that the command line sets is said of one experiment, in whatever order.
            if node is None or (_is_override(node) and _is_override(new)):
                continue
            rest = {name: value for name, value in entries.items() if name != key}
            sections[section] = replace(sections[section], value=rest)
            if node.value is not None and key not in _entries(_entries(above).get(section)):
                left_out.append((section, key))
        self.datasets.append(_OtherDataset(old, new, left_out))
        return replace(below, value=sections)

    def dataset(self, path: str | Path) -> Node:
        """Layer that names the dataset of ``--data``."""
        place = Source(DATA, str(path), has_lines=False).place(0, 0)
        self.sources.append(place.source)
        part = {key: Node(value, place) for key, value in dataset_at(path).items()}
        return Node({"data": Node({"dataset": Node(part, place)}, place)}, place)

    def check_milestones(self, root: Node) -> None:
        """Add a problem if the milestones were written for another unit than the length's."""
        train = _entries(_entries(root).get("train"))
        schedule, unit = _entries(train.get("schedule")), _unit(train)
        for node, written in self._milestones:
            if node is not schedule.get("milestones"):
                continue
            if "unit" not in schedule and unit not in {"", written}:
                place = train[unit].key_place or train[unit].place
                message = (
                    f"`train.{unit}` changes their unit from {written} to {unit}; give "
                    f"`--{unit} {train[unit].value}` instead, which scales the whole recipe, "
                    "or train.schedule.unit, or new milestones"
                )
                path = ("train", "schedule", "milestones")
                self.problems.append(place.problem("out-of-range", message, path=path))
            return  # the first note is of the unit that they were written for

    def with_bases(self, document: Document, chain: tuple[str, ...] = ()) -> Node:
        """Lay a document over whatever it extends."""
        self.sources.append(document.source)
        self.problems += document.problems
        root = document.root
        if not isinstance(root.value, dict):
            message = "the top level must be a mapping of `key: value`"
            suggestion = missing_space(root.value)
            raise SpecError([root.place.problem("wrong-type", message, suggestion=suggestion)])
        entries = dict(root.value)
        if document.source.path is not None and are_of_sweep(entries.keys()):
            raise SpecError([_sweep_refused(root.value, document.source.path)])
        if document.source.path is not None:
            chain = (*chain, os.path.realpath(document.source.path))
        below: Node | None = None
        for name, path in _extended_names(entries.pop("extends", None)):
            base = self._base(name, path, chain)
            below = base if below is None else self.merged(below, base)
        above = Node(entries, root.place)
        return above if below is None else self.merged(below, above)

    def _base(self, name: Node, path: SpecPath, chain: tuple[str, ...]) -> Node:
        file = named_file(name, path)
        if len(self.sources) == _MAX_FILES:
            raise _refused(name.place, path, f"more than {_MAX_FILES} files")
        document = read_yaml(file, named_at=(name.place, path))
        if os.path.realpath(file) in chain:
            raise _refused(name.place, path, f"{file} extends itself")
        return _without_own(self.with_bases(document, chain))

    def fragment(self, fragment: str | Path) -> Node:
        """Read a fragment to lay over the spec."""
        place = Source(WITH, str(fragment), has_lines=False).place(0, 0)
        named = Node(str(fragment), place)
        file = fragment if isinstance(fragment, Path) else named_file(named, ())
        return _without_own(self.with_bases(read_yaml(file, named_at=(place, ()))))

    def overridden(self, root: Node, argument: str) -> Node:
        """Lay the value of an override over the spec."""
        steps, document, appends = _parse_override(argument)
        self.sources.append(document.source)
        self.problems += document.problems
        key = ".".join(step for step, _ in steps)
        self._check_given_once(key, argument, document.source)
        if argument.startswith(_LENGTHS):
            scaled = scale_recipe(root, steps[-1][0], document.root)
            self.problems += scaled.problems
            self.notices += scaled.notices
            return scaled.root
        try:
            value = document.root
            overlay = _overlay(root, steps, value, self.main, appends=appends)
        except SpecError as error:  # a list has no such item; the spec is checked all the same
            self.problems += error.errors
            return root
        root = self.merged(root, overlay)
        if argument.startswith("--lr "):
            self._tell_of_aux_lr(root, argument)
        return root

    def _check_given_once(self, key: str, argument: str, source: Source) -> None:
        """Check that a flag and ``--set``, or two flags, do not give the same value.

        Raises:
            SpecError: They do.
        """
        place = "train" if key in {"train.steps", "train.epochs"} else key
        before = self._given.get(place, "")
        if before and (before.startswith("--") or argument.startswith("--")):
            given = " and ".join(
                f"`{one}`" if one.startswith("--") else f"`--set {one}`"
                for one in (before, argument)
            )
            message = f"{given} give the same value; leave one of them out"
            raise SpecError([source.place(0, 0).problem("exclusive", message)])
        self._given[place] = argument

    def _tell_of_aux_lr(self, root: Node, argument: str) -> None:
        optimizer = _entries(_entries(_entries(root).get("train")).get("optimizer"))
        if "type" in optimizer and optimizer["type"].value == "muon":
            self.notices.append(
                f"{argument}: sets the rate of Muon; train.optimizer.aux.lr, the rate of all other "
                "weights, stays as it is"
            )


def merge(below: Node | None, above: Node, *, main: Source, path: SpecPath = ()) -> Node:
    """Lay ``above`` over ``below``: mappings deeply, all else whole; null takes away.

    Where a part stands, a name or a mapping with ``type`` replaces it, and a mapping without
    changes its options. A scalar that stands for a mapping is taken as that mapping. A length given
    in one unit takes away that in another.

    A null stays in the tree, so that errors can point at it, except where null may be the value
    of an option.

    Args:
        below: What was there.
        above: What is laid over it.
        main: Source of the spec itself. Errors about a mapping from two sources point there if one
            of them is the spec, else to the upper one.
        path: Place in the spec.
    """
    if below is None:
        return above
    key = short_key(path)
    if key == "type" and _names_part(above):
        return replace(above, replaces=below)
    if not isinstance(above.value, dict):
        return above
    if key is not None and isinstance(below.value, str):
        name = Node(below.value, below.place, below.key_place)
        below = Node({key: name}, below.place, below.key_place)
    if not isinstance(below.value, dict):
        return above
    entries = dict(below.value)
    if path[:1] == ("train",) and any(
        above.value[k].value is not None for k in _UNITS & above.value.keys()
    ):
        entries = {k: v for k, v in entries.items() if k not in _UNITS - above.value.keys()}
    for key, node in above.value.items():
        if node.value is None and key in entries and _is_option((*path, key)):
            del entries[key]
        else:
            entries[key] = merge(entries.get(key), node, main=main, path=(*path, key))
    owner = below if below.place.source is main else above
    return Node(entries, owner.place, owner.key_place, below.replaces)


def _names_part(node: Node) -> bool:
    """Tell whether a value names a part, and does not only change options of the one below."""
    return isinstance(node.value, str) or "type" in _entries(node)


def _dataset(node: Node | None) -> dict[str, object]:
    """Type and options of a dataset, with its path counted from the file that names it."""
    if node is None or node.value is None:
        return {}
    part: dict[str, object] = {"type": node.value} if isinstance(node.value, str) else plain(node)
    path = part.get("path") if isinstance(part, dict) else None
    if isinstance(path, str) and "\0" not in path:
        part["path"] = absolute_path(path, _entries(node)["path"].place)
    return part if isinstance(part, dict) else {}


def _dataset_notices(
    datasets: Sequence[_OtherDataset], root: Node, claims: Sequence[str]
) -> Iterator[str]:
    """Yield a notice of each dataset by which something was left out.

    Args:
        datasets: Datasets that were laid over others.
        root: The whole spec.
        claims: Claims of the spec that do not hold any more either.
    """
    for one in datasets:
        keys = [
            f"{section}.{key}"
            for section, key in one.left_out
            if key not in _entries(_entries(root).get(str(section)))
        ]
        if keys:
            source = one.new.place.source.name.removeprefix("<command line>:")
            new, old = _dataset(one.new).get("type"), "another dataset"
            said = f"{source} names the dataset {new}"
            if one.old is not None:
                old = str(_dataset(one.old).get("type"))
                said = f"{source} replaces the dataset {old} by {new}"
            yield f"{said}; values for {old} are not used: {', '.join([*keys, *claims])}"


def _is_override(node: Node) -> bool:
    return node.place.source.name in {SET, DATA}


def _is_option(path: SpecPath) -> bool:
    """Tell whether a path lies inside a registered part, whose options are its own."""
    return any(Part in models_at(path[:length]) for length in range(1, len(path)))


# ``--set path.to.key=value``; indices are written .0, or [0] as in messages.
_STEP = r"[^\s.=\[\]+]+"
_KEY = re.compile(rf"{_STEP}(?:\.{_STEP}|\[[0-9]+\])*")
_INDEX = re.compile("[0-9]{1,9}")

_Steps = Sequence[tuple[str, Place]]
"""Keys and indices of an override's path, and their places in the argument."""


_LENGTHS = ("--epochs ", "--steps ")
"""Flags that scale the recipe."""


def _turn(argument: str) -> int:
    """Turn of an override: lengths first, which scale what files say; other flags last."""
    return 0 if argument.startswith(_LENGTHS) else 2 if argument.startswith("--") else 1


def _parse_override(argument: str) -> tuple[_Steps, Document, bool]:
    """Path and value of ``path.to.key=value``, the value in YAML 1.2 flow style; or of a flag.

    Returns:
        The path, the value, and whether it is appended to a list: ``path.to.key+=value``.

    Raises:
        SpecError: It is not of this form.
    """
    if argument.startswith("--"):
        return _parse_flag(argument)
    source = source_of(argument, SET, has_lines=False)

    def refused(column: int, message: str, code: str = "yaml-syntax") -> SpecError:
        return SpecError([source.place(0, column).problem(code, message)])

    key, equals, text = source.text.partition("=")
    start = len(key) + 1
    appends = key.endswith("+")
    key = key.removesuffix("+")
    if not equals or not _KEY.fullmatch(key):
        raise refused(0, "must be path.to.key=value")
    steps = [(match[0], source.place(0, match.start())) for match in re.finditer(_STEP, key)]
    if len(steps) > MAX_DEPTH:
        raise refused(0, f"nested deeper than {MAX_DEPTH}", "limit")
    if not text.split("#")[0].strip():
        raise refused(len(key), 'no value: null takes the key away, "" is empty text')
    if steps[0][0] == "extends":
        raise refused(0, "`extends` works in files; lay a file over a spec by --with")
    path = tuple(int(step) if _INDEX.fullmatch(step) else step for step, _ in steps)
    document = parse_yaml(source, start=start, path=path)
    if isinstance(document.root.value, dict | list) and text.lstrip()[0] not in "[{":
        raise refused(start, "write a mapping as {key: value}, a list as [a, b]")
    return steps, document, appends


def _parse_flag(argument: str) -> tuple[_Steps, Document, bool]:
    """Path and value of a flag that stands for a key, as ``--batch-size 64``."""
    if argument.startswith("--log ") and "[" not in argument:  # names, with commas between
        argument = f"--log [{argument.removeprefix('--log ')}]"
    source = source_of(argument, COMMAND_LINE, has_lines=False)
    flag, _, text = source.text.partition(" ")
    key = FLAGS.get(flag.removeprefix("--").replace("-", "_"))
    if key is None or not text.strip():
        known = ", ".join(f"--{name.replace('_', '-')}" for name in FLAGS)
        message = f"must be path.to.key=value, or one of these with a value: {known}"
        if flag in _ARGUMENTS:
            message = f"{flag} is no override; in Python there is `{_ARGUMENTS[flag]}`"
        raise SpecError([source.place(0, 0).problem("yaml-syntax", message)])
    steps = [(step, source.place(0, 0)) for step in key.split(".")]
    path = tuple(step for step, _ in steps)
    return steps, parse_yaml(source, start=len(flag) + 1, path=path), False


def _overlay(
    below: Node | None,
    steps: _Steps,
    value: Node,
    main: Source,
    path: SpecPath = (),
    *,
    appends: bool,
) -> Node:
    """Wrap a value in the mappings and lists that lead to it.

    Raises:
        SpecError: The path leads to an item that a list does not have, or to no list to append to.
    """
    if not steps:
        return _appended(below, value, path) if appends else value
    (step, place), *rest = steps
    if below is not None and isinstance(below.value, list):
        count = len(below.value)
        if not _INDEX.fullmatch(step) or int(step) >= count:
            indices = [str(number) for number in range(count)]
            amount = counted(count, "item")
            between = " and " if count == 2 else " to "
            ends = between.join(dict.fromkeys(indices[:1] + indices[-1:])) or "none"
            message = f"there is no item {step}; the list has {amount} ({ends})"
            raise SpecError([place.problem("out-of-range", message, path=path, allowed=indices)])
        index = int(step)
        here, item = (*path, index), below.value[index]
        new = merge(
            item, _overlay(item, rest, value, main, here, appends=appends), main=main, path=here
        )
        kept = [] if new.value is None else [new]
        items = [*below.value[:index], *kept, *below.value[index + 1 :]]
        return Node(items, below.place, below.key_place)
    child = _entries(below).get(step)
    inside = _overlay(child, rest, value, main, (*path, step), appends=appends)
    return Node({step: Node(inside.value, inside.place, inside.key_place or place)}, place)


def _appended(below: Node | None, value: Node, path: SpecPath) -> Node:
    """Append a value, or the values of a list, to the list below."""
    before = [] if below is None or below.value is None else below.value
    if not isinstance(before, list):
        message = "`+=` appends to a list, and this is none; `=` replaces it"
        raise SpecError([value.place.problem("wrong-type", message, path=path)])
    return Node(
        [*before, *(value.value if isinstance(value.value, list) else [value])], value.place
    )


def _extended_names(extends: Node | None) -> list[tuple[Node, SpecPath]]:
    """Names under ``extends``, the lowest first.

    Raises:
        SpecError: It is neither a name nor a list of names.
    """
    if extends is None or extends.value is None:
        return []
    named: list[tuple[Node, SpecPath]] = [(extends, ("extends",))]
    if isinstance(extends.value, list):
        named = [(node, ("extends", index)) for index, node in enumerate(extends.value)]
    for node, path in named:
        if not isinstance(node.value, str):
            raise _refused(node.place, path, "must be a file, a bundled spec's name, or a list")
    return named


def named_file(node: Node, path: SpecPath) -> Path:
    """File of a spec's or a recipe's name; a relative path counts from the file that names it.

    Raises:
        SpecError: There is no such bundled spec or recipe.
    """
    name, file = str(node.value), node.place.source.path
    if is_path(name):
        return Path(name) if file is None else file.parent / name
    names = (*bundled_names(), *recipe_names())
    if name in names:
        return bundled_file(name)
    message, suggestion = f"no bundled spec or recipe is named '{name}'", nearest(name, names)
    if suggestion is None:
        message += "; see: resnet-build list specs, resnet-build list recipes"
    raise SpecError([node.place.problem("extends", message, path=path, suggestion=suggestion)])


def _refused(place: Place, path: SpecPath, message: str) -> SpecError:
    return SpecError([place.problem("extends", message, path=path)])


def _sweep_refused(entries: Mapping[str, Node], file: Path) -> Problem:
    key = min(entries)
    return (entries[key].key_place or entries[key].place).problem(
        "unknown-key",
        "this file is a sweep, and no spec",
        path=(key,),
        suggestion=f"resnet-build sweep {shlex.quote(str(file))}",
    )


def _without_own(root: Node) -> Node:
    entries = {key: node for key, node in _entries(root).items() if key not in OWN}
    return Node(entries, root.place, root.key_place)


def _unit(train: Mapping[str, Node]) -> str:
    """Unit of a recipe's length; empty if it has none."""
    given = (key for key in ("steps", "epochs") if key in train and train[key].value is not None)
    return next(given, "")


def _entries(node: Node | None) -> dict[str, Node]:
    return node.value if node is not None and isinstance(node.value, dict) else {}


def _without_stale_claims(root: Node, written: Node) -> tuple[Node, list[str], str]:
    """Drop what a file claims of an experiment that fragments or overrides have changed.

    Args:
        root: The whole spec.
        written: The spec as its file has it.

    Returns:
        The spec, the keys that were dropped, and what has changed.
    """

    def experiment(node: Node, section: str) -> object:
        found = _entries(node).get(section)
        values = None if found is None else plain(found)
        if isinstance(values, dict):
            return {k: v for k, v in values.items() if f"{section}.{k}" not in _INCIDENTAL}
        return values

    changed = [key for key in _SECTIONS if experiment(root, key) != experiment(written, key)]
    entries = dict(_entries(root))
    dropped = []
    for key, sections in _CLAIMS.items():
        if not sections & set(changed) or not _claims_something(entries.get(key)):
            continue
        claims = entries.pop(key)
        # What --set claims is claimed of the changed experiment.
        fresh = {k: v for k, v in _entries(claims).items() if v.place.source.name == SET}
        if fresh:
            entries[key] = Node(fresh, claims.place, claims.key_place)
        elif not isinstance(claims.value, dict) and claims.place.source.name == SET:
            entries[key] = claims
        else:
            dropped.append(key)
    # "the network, the data and the recipe": the last "and" stays.
    what = " and ".join(_SECTIONS[key] for key in changed).replace(" and ", ", ", len(changed) - 2)
    return Node(entries, root.place, root.key_place), dropped, what


def _claims_something(claims: Node | None) -> bool:
    """Tell whether ``expect`` or ``published`` has a number; null and a source alone are none."""
    if claims is None or not isinstance(claims.value, dict):
        return claims is not None and claims.value is not None
    return any(node.value is not None for key, node in claims.value.items() if key != "source")

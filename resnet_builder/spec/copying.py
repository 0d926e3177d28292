"""Copies of specs that keep their comments."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from resnet_builder.spec.bundled import is_path
from resnet_builder.spec.dump import dump_value
from resnet_builder.spec.editing import BYTE_ORDER_MARK, compose, entries, line_end, put
from resnet_builder.spec.schema import is_file_name


def copied_spec(text: str, *, origin: str, name: str, source: str, target: str) -> str:
    """Copy a spec, under another name.

    Args:
        text: The spec, without problems.
        origin: What the first line says that it is copied from.
        name: What the copy is called.
        source: What commands in its comments call the spec.
        target: What they are to call the copy.
    """
    if old := entries(compose(text)).get("name"):
        text = put(text, old, dump_value(name))
    command = re.compile(rf"(?m)(^[ \t]*#.*resnet-build \w+ ){re.escape(source)}(?![\w./-])")
    text = command.sub(lambda match: match[1] + target, text)
    mark = BYTE_ORDER_MARK if text.startswith(BYTE_ORDER_MARK) else ""
    return f"{mark}# Copied from {origin}.{line_end(text)}{text.removeprefix(mark)}"


def relative_names(data: Mapping[str, Any]) -> list[str]:
    """Return the files that a spec names and that count from its own folder.

    Args:
        data: The spec's own file, as plain data.
    """
    extends, weights = data.get("extends") or [], (data.get("model") or {}).get("weights")
    path = weights.get("path") if isinstance(weights, dict) else weights
    layers = [
        name for name in ([extends] if isinstance(extends, str) else extends) if is_path(name)
    ]
    plugins = [name for name in data.get("plugins") or [] if name.endswith(".py") or is_path(name)]
    first = [path] if path is not None and is_file_name(path) else []
    return [name for name in (*layers, *plugins, *first) if not Path(name).is_absolute()]

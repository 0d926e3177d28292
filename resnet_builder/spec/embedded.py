"""Spec in a file of weights: the text in its header, read without torch."""

import json
from typing import BinaryIO

_LENGTH = 8
_MAX_HEADER = 2**26
_NO_SPEC = "; name the spec of its network instead"


def embedded_spec(file: BinaryIO) -> str | None:
    """Read the spec that a file of weights, or a checkpoint, has in its header.

    Args:
        file: The file, at its start.

    Returns:
        The spec as YAML; ``None`` if this is no file of weights, of whatever program.

    Raises:
        ValueError: It is a file of weights without a spec; the message says what it is.
    """
    head = file.read(_LENGTH + 1)
    length = int.from_bytes(head[:_LENGTH], "little")
    # The length comes first, as its header may begin like a pickle. No YAML has zeros in it.
    if head[_LENGTH:] != b"{" or not 2 <= length <= _MAX_HEADER:
        if head.startswith((b"PK\x03\x04", b"\x80")):
            raise ValueError(f"it is a file of torch.save, which has no spec{_NO_SPEC}")
        return None
    try:
        metadata = json.loads(b"{" + file.read(length - 1)).get("__metadata__", {})
        if "checkpoint" in metadata:
            spec = json.loads(metadata["checkpoint"])["provenance"]["spec"]
        else:
            spec = json.loads(metadata["resnet_builder"])["spec"]
    except (ValueError, LookupError, AttributeError, TypeError, RecursionError):
        spec = None
    if not isinstance(spec, str):
        raise ValueError(f"it is a file of weights without a spec{_NO_SPEC}")
    return spec

"""What a spec's network counts to, whatever the spec expects; and writing that into its file."""

import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from resnet_builder.builder import check_source
from resnet_builder.errors import SpecError, UsageError
from resnet_builder.model import count_macs, count_parameters
from resnet_builder.runs.files import storage_errors, write_atomically
from resnet_builder.spec.expectations import Change, expected


def measure(
    source: str | Path | Mapping[str, object], *, plugins: Sequence[str] = ()
) -> dict[str, int]:
    """Count parameters, depth and MACs of a spec's network, on the meta device.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        plugins: The plugins that may be imported.

    Returns:
        The counts, by keys of ``expect``.

    Raises:
        SpecError: What is wrong with the spec, but for what it expects.
        StorageError: A file cannot be read.
    """
    checked = check_source(source, plugins=plugins, with_macs=True, with_weights=True)
    others = [problem for problem in checked.problems if problem.code != "expect"]
    if others:
        raise SpecError(others)
    if checked.spec is None:
        checked = check_source(source, plugins=plugins, overrides=["expect=null"])
    assert checked.spec is not None, "a spec without other problems"
    assert checked.network is not None, "a spec without other problems"
    model = checked.spec.model
    channels, size, _ = model.image_shape
    return {
        "parameters": count_parameters(checked.network),
        "depth": checked.network.depth,
        "macs": count_macs(checked.network, channels, size),
    }


def renew_expectations(path: Path, *, plugins: Sequence[str] = ()) -> tuple[Change, ...]:
    """Write what a spec's network counts to into its file; a spec that is wrong is not touched.

    Args:
        path: The file; of a link, what it points to.
        plugins: The plugins that may be imported.

    Returns:
        What is different in the file now.

    Raises:
        SpecError: What is wrong with the spec, but for what it expects.
        StorageError: The file cannot be read or written.
        UsageError: The file is laid out so that nothing can be added to it.
    """
    counts = measure(path, plugins=plugins)
    with storage_errors("read", path):
        text = path.read_bytes().decode()
    try:
        new, changes = expected(text, counts)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if changes:
        with storage_errors("write", path):
            file = path.resolve(strict=True)
            file.open("r+b").close()  # a file that may not be written is not replaced either
            mode = stat.S_IMODE(file.stat().st_mode)
            write_atomically(file, [new.encode()])
            file.chmod(mode)
    return changes

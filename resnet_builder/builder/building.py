"""The public ways from a spec to a network."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import overload

from resnet_builder.builder.checking import CheckedSpec, check, unexpected
from resnet_builder.builder.construct import (
    collector_paused,
    construct_on_meta,
    give_weights,
    network_grids,
)
from resnet_builder.builder.pretrained import load_pretrained
from resnet_builder.builder.resolving import resolve
from resnet_builder.device import pick_device
from resnet_builder.errors import Problem, SpecError
from resnet_builder.experiment import Experiment
from resnet_builder.features import Features
from resnet_builder.model import ResNet
from resnet_builder.plugins import import_plugins
from resnet_builder.spec.load import Draft, read_draft
from resnet_builder.spec.schema import Spec

Source = str | Path | Mapping[str, object] | Draft
"""A path, a bundled spec's name, a mapping, or what :func:`read_draft` made of one of them."""


def load_experiment(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    plugins: Sequence[str] = (),
) -> Experiment:
    """Read a spec that is to be trained, and check it in full.

    Args:
        source: A path, a bundled spec's name, a mapping, or a draft, which is not read again.
        overrides: ``path.to.key=value``, as ``--set``.
        fragments: Fragments to lay over the spec, as ``--with``.
        plugins: The plugins that may be imported.

    Raises:
        SpecError: Everything that is wrong with the spec.
        StorageError: A file cannot be read.
        UsageError: The spec has no ``data`` or no ``train``.
    """
    checked = _read(source, overrides, fragments, plugins, with_weights=True)
    assert checked.spec is not None, "a spec without problems"
    assert checked.network is not None, "a spec without problems"
    return Experiment(checked.spec, checked.network)


def read_spec(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    plugins: Sequence[str] = (),
    with_weights: bool = False,
) -> Spec:
    """Read a spec, check it in full, and write out its defaults.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        overrides: ``path.to.key=value``, as ``--set``.
        fragments: Fragments to lay over the spec, as ``--with``.
        plugins: The plugins that may be imported.
        with_weights: Whether to check that the weights it starts from are there.

    Returns:
        The spec, resolved.

    Raises:
        SpecError: Everything that is wrong with it.
        StorageError: A file cannot be read.
    """
    spec = _read(source, overrides, fragments, plugins, with_weights=with_weights).spec
    assert spec is not None, "a spec without problems"
    return spec


@overload
def build_from_spec(
    source: Source,
    *,
    device: str = "cpu",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    features: None = None,
    output_stride: int | None = None,
) -> ResNet: ...


@overload
def build_from_spec(
    source: Source,
    *,
    device: str = "cpu",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    features: Sequence[str],
    output_stride: int | None = None,
) -> Features: ...


def build_from_spec(
    source: Source,
    *,
    device: str = "cpu",
    seed: int | None = None,
    overrides: Sequence[str] = (),
    plugins: Sequence[str] = (),
    features: Sequence[str] | None = None,
    output_stride: int | None = None,
) -> ResNet | Features:
    """Read a spec, check it in full, and build its network, as :func:`build` does.

    Args:
        source: A path, a bundled spec's name, or a mapping.
        device: As for :func:`build`.
        seed: As for :func:`build`.
        overrides: ``path.to.key=value``, as ``--set``.
        plugins: The plugins that may be imported.
        features: Stages, as ``["layer2", "layer4"]``, whose outputs are wanted instead of logits.
        output_stride: By how much an image has shrunk behind the last stage; dilation stands in
            for strides beyond it, and the weights stay the same.

    Raises:
        CheckpointError: The weights that it starts from are damaged, or not the network's.
        DataError: They cannot be downloaded.
        SpecError: Everything that is wrong with the spec.
        StorageError: A file cannot be read.
        UsageError: There is no such device or stage, or the strides do not reach
            ``output_stride``.
    """
    with collector_paused():
        checked = _read(source, overrides, (), plugins, with_weights=True)
        assert checked.spec is not None, "a spec without problems"
        assert checked.network is not None, "a spec without problems"
        spec, network = checked.spec, checked.network
        if output_stride is not None:
            network = construct_on_meta(spec.model, output_stride=output_stride)
        network = _on_device(network, spec, device, seed, output_stride=output_stride)
        if features is None:
            return network
        grids = network_grids(spec.model, output_stride)
        strides = {f"layer{number}": grid.output_stride for number, grid in enumerate(grids, 1)}
        return Features(network, features, strides=strides)


def build(
    source: Experiment | Spec,
    *,
    device: str = "cpu",
    seed: int | None = None,
    pretrained: bool = True,
) -> ResNet:
    """Build a network, draw its first weights, and read those that it starts from.

    Args:
        source: An experiment, which was checked already, or a spec, resolved or not.
        device: A torch device, or ``"auto"``: CUDA, then MPS, then CPU.
        seed: Of a generator of its own, so that weights are the same on every device and no
            global state is touched; ``None`` draws from torch's global generator.
        pretrained: Whether to read what ``model.weights`` names; needless, and the file with
            it, where other weights are put in afterwards.

    Raises:
        CheckpointError: Those weights are missing, damaged, or not the network's.
        DataError: They cannot be downloaded.
        SpecError: The network is not what the spec expects.
        PartError: Options or shapes do not go together.
        RegistryError: A part is not registered.
        StorageError: A file cannot be read.
        UsageError: There is no such device.
    """
    with collector_paused():
        spec = resolve(source) if isinstance(source, Spec) else source.spec
        network = construct_on_meta(spec.model)
        if isinstance(source, Spec) and spec.expect is not None:
            differing = unexpected(network, spec.expect)
            problems = [Problem("expect", f"expect.{key}", text) for key, text in differing]
            if problems:
                raise SpecError(problems)
        return _on_device(network, spec, device, seed, pretrained=pretrained)


def check_source(
    source: Source,
    *,
    overrides: Sequence[str] = (),
    fragments: Sequence[str | Path] = (),
    plugins: Sequence[str] = (),
    with_macs: bool = False,
    with_weights: bool = False,
) -> CheckedSpec:
    """Read and check a spec without raising for what is wrong in it; see :func:`read_spec`.

    Raises:
        SpecError: There is nothing to check: no file, no YAML, no consent to a plugin.
        StorageError: A file cannot be read.
    """
    draft = (
        source
        if isinstance(source, Draft)
        else read_draft(source, overrides=overrides, fragments=fragments)
    )
    imported = import_plugins(draft.plugins or (), plugins, draft.positions)
    with collector_paused():
        checked = check(draft, with_macs=with_macs, with_weights=with_weights)
    if checked.spec is None:
        return checked
    spec = checked.spec.model_copy(update={"plugins": imported})
    return replace(checked, spec=spec)


def _read(
    source: Source,
    overrides: Sequence[str],
    fragments: Sequence[str | Path],
    plugins: Sequence[str],
    *,
    with_weights: bool,
) -> CheckedSpec:
    checked = check_source(
        source, overrides=overrides, fragments=fragments, plugins=plugins, with_weights=with_weights
    )
    if checked.problems:
        raise SpecError(checked.problems)
    return checked


def _on_device(
    network: ResNet,
    spec: Spec,
    device: str,
    seed: int | None,
    *,
    pretrained: bool = True,
    output_stride: int | None = None,
) -> ResNet:
    place = pick_device(device)
    network = give_weights(network, spec.model, seed=seed, output_stride=output_stride)
    if pretrained and spec.model.weights is not None:
        load_pretrained(network, spec.model.weights)
    return network if place.type == "cpu" else network.to(place)

"""What a spec may say: frozen models of its sections, torch-free.

Open sets (blocks, shortcuts, stems, heads, norms, activations, attentions, datasets,
augmentations) are :class:`Part` here, a name and options that the builder checks against the
registries. Closed sets (initialisation, preprocessing, optimizer, schedule, loss) are unions
tagged by ``type``.
"""

from typing import Annotated, Literal

from pydantic import Field

from resnet_builder.spec.data_section import DataSpec
from resnet_builder.spec.model_section import ModelSpec
from resnet_builder.spec.section import DEVICE_PATTERN, Auto, Count, Fraction, Name, Section
from resnet_builder.spec.train_section import TrainSpec


class RunSpec(Section):
    """How to compute, not what: recorded with a run, but no part of the experiment."""

    device: Annotated[str, Field(pattern=DEVICE_PATTERN)] = Field(
        "auto", description="Where to compute; `auto` is CUDA, then MPS, then the CPU."
    )
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="Of training; `auto` is bf16 where the hardware computes it fast."
    )
    compile: Auto | bool = Field("auto", description="Whether torch.compile is used.")
    cpu_kernels: Auto | bool = Field(
        "auto",
        description="Whether a CPU computes with kernels of its own, faster than torch's.",
    )
    threads: Auto | Annotated[int, Field(ge=1, le=1_024)] = Field(
        "auto", description="CPU threads; `auto` is one for each core."
    )


class ExpectSpec(Section):
    """The spec's own test: what its network must count to."""

    parameters: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="Numbers that are learnt."
    )
    depth: Count | None = Field(
        None, description="Convolutions on the residual path, plus stem and classifier."
    )
    macs: Annotated[int, Field(ge=1, le=2**63 - 1)] | None = Field(
        None, description="Multiply-adds for one image."
    )


class PublishedSpec(Section):
    """What the source of an experiment reports, as fractions."""

    test_top1: Fraction | None = Field(None, description="Test images named right.")
    test_top5: Fraction | None = Field(None, description="Test images among the first five.")
    source: Annotated[str, Field(min_length=1, max_length=500)] = Field(
        description="Paper and table."
    )


class Spec(Section):
    """A whole experiment."""

    version: Literal[1] = Field(1, description="Of this format.")
    name: Name = Field(description="What run directories are called; default: the file's.")
    plugins: Annotated[tuple[str, ...], Field(max_length=32, strict=False)] = Field(
        (), description="Files and modules with parts that the spec needs."
    )
    model: ModelSpec = Field(description="The network.")
    data: DataSpec | None = Field(None, description="What it is trained on.")
    train: TrainSpec | None = Field(None, description="How it is trained.")
    run: RunSpec = Field(RunSpec(), description="How it is computed.")
    expect: ExpectSpec | None = Field(None, description="What the network must count to.")
    published: PublishedSpec | None = Field(None, description="What the source reports.")


class SpecFile(Spec):
    """A spec as files have it: before its layers are merged."""

    extends: str | tuple[str, ...] = Field(
        (), description="What lies below: files or bundled names, the lowest first."
    )

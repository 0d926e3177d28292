"""Names to parts, and signatures to options."""

import contextlib
import functools
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from pydantic import Field, ValidationError

from resnet_builder.errors import RegistryError
from resnet_builder.registry import Registry

Things = Registry[Callable[..., Any]]


@pytest.fixture
def registry() -> Things:
    """Make a registry with a class and a function in it."""
    things: Things = Registry("thing", contract=("stride", "norm"), hints={"C": "write `large`"})

    @things.register("large")
    class Large:
        """A class with options."""

        def __init__(
            self,
            channels: int,
            *,
            stride: int,
            ratio: Annotated[float, Field(gt=0)] = 0.5,
            shape: tuple[int, int] = (1, 2),
        ) -> None:
            self.given = (channels, stride, ratio, shape)

    @things.register("a_little")
    def little(*, norm: object, model_size: int) -> int:
        return model_size

    return things


def test_registered_parts_are_found_by_their_sorted_names(registry: Things) -> None:
    def part() -> None:
        """Do nothing."""

    assert registry.register("third")(part) is part
    assert registry.get("third") is part
    assert registry.names() == ("a_little", "large", "third")
    assert "large" in registry
    assert "small" not in registry


def test_unknown_name_gets_choices_and_a_suggestion(
    registry: Things,
) -> None:
    with pytest.raises(RegistryError, match=r"^no thing is named 'larg'$") as raised:
        registry.get("larg")
    assert (raised.value.allowed, raised.value.suggestion) == (("a_little", "large"), "large")
    with pytest.raises(RegistryError, match="no thing is named 'C': write `large`") as raised:
        registry.get("C")
    assert raised.value.suggestion is None


def test_name_taken_names_both_parts(registry: Things) -> None:
    with pytest.raises(RegistryError) as raised:
        registry.register("large")(functools.wraps)
    message = str(raised.value)
    assert message.startswith(f"thing 'large' is registered twice: in {__name__} ({__file__}:")
    assert "and in functools (" in message


@pytest.mark.parametrize("name", ["", "Large", "a-b", "a.b", "1a", "x" * 65, "a\n"])
def test_name_no_spec_can_write_is_refused(name: str, registry: Things) -> None:
    with pytest.raises(RegistryError, match="cannot be registered"):
        registry.register(name)


def test_options_are_the_keyword_only_parameters_but_the_contracts(
    registry: Things,
) -> None:
    options = registry.options("large")
    assert list(options.model_fields) == ["ratio", "shape"]
    assert options.model_validate({}).model_dump() == {"ratio": 0.5, "shape": (1, 2)}
    assert registry.options("large") is options
    assert list(registry.options("a_little").model_fields) == ["model_size"]
    assert registry.accepts("large") == {"stride"}
    assert registry.accepts("a_little") == {"norm"}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        ({"ratio": 0}, "greater_than"),
        ({"ratio": "1"}, "float_type"),
        ({"ratio": float("inf")}, "finite_number"),
        ({"shape": (1, "2")}, "int_type"),
        ({"rati": 1}, "extra_forbidden"),
    ],
)
def test_options_are_checked_strictly(
    given: dict[str, object], kind: str, registry: Things
) -> None:
    with pytest.raises(ValidationError) as raised:
        registry.options("large").model_validate(given)
    assert [error["type"] for error in raised.value.errors()] == [kind]


@pytest.mark.parametrize("given", [(1, 2), [1, 2]])
def test_option_that_is_a_list_may_be_given_as_a_spec_holds_it(
    given: object, registry: Things
) -> None:
    def listed(
        *,
        sizes: list[int],
        more: Annotated[list[int] | None, Field(max_length=2)] = None,
    ) -> None:
        """Have lists."""

    registry.register("listed")(listed)
    options = registry.options("listed").model_validate({"sizes": given, "more": given})
    assert options.model_dump() == {"sizes": [1, 2], "more": [1, 2]}
    for wrong in ("12", [1, "2"]):
        with pytest.raises(ValidationError):
            registry.options("listed").model_validate({"sizes": wrong})


def test_part_that_does_not_type_its_options_is_named(
    registry: Things,
) -> None:
    def untyped(*, size=3):  # type: ignore[no-untyped-def]
        """Leave the type out."""

    def unresolved(*, size: "Missing") -> None:  # type: ignore[name-defined]  # noqa: F821
        """Name a type that does not exist."""

    registry.register("untyped")(untyped)
    registry.register("unresolved")(unresolved)
    registry.register("partial")(functools.partial(print))
    with pytest.raises(RegistryError, match=r"thing 'untyped' in .* `size` has no type"):
        registry.options("untyped")
    with pytest.raises(RegistryError, match=r"thing 'unresolved' in .* 'Missing' is not defined"):
        registry.options("unresolved")
    with pytest.raises(RegistryError, match=r"thing 'partial' in .*"):
        registry.options("partial")


def test_temporary_part_leaves_no_trace_even_after_an_error(registry: Things) -> None:
    def other(*, x: int) -> None:
        """Take the place of another part."""

    before, options = registry.get("large"), registry.options("large")
    with (
        contextlib.suppress(KeyError),
        registry.temporary("large", other),
        registry.temporary("new", other),
    ):
        assert registry.get("large") is other
        assert list(registry.options("large").model_fields) == ["x"]
        raise KeyError
    assert registry.get("large") is before
    assert registry.options("large") is options
    assert "new" not in registry

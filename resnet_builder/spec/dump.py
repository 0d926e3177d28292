"""YAML text of specs and of their values."""

import math
from collections.abc import Mapping
from typing import Any

import yaml

from resnet_builder.spec.schema import Spec
from resnet_builder.spec.section import Part, Section
from resnet_builder.spec.yaml_source import resolve

_WIDTH = 100


def dump_spec(spec: Spec) -> str:
    """YAML text of a spec, of which :func:`load.load_spec_text` makes an equal spec.

    A section or an option that is absent is left out; whatever has a value is written, defaults
    included.
    """
    return _dump(plain_data(spec), flow=None, width=_WIDTH)


def dump_values(values: Mapping[str, Any]) -> str:
    """YAML text of composed values, as a draft has them; reading it gives an equal draft."""
    return _dump(dict(values), flow=None, width=_WIDTH)


def dump_value(value: Any) -> str:
    """YAML text of a value, in one line, as it could stand behind a key."""
    text = _dump(plain_data(value), flow=True, width=math.inf)
    return text.removesuffix("\n").removesuffix("\n...")


def plain_data(value: Any) -> Any:
    """Plain data of a section or of a value in one, without what is absent."""
    if isinstance(value, Part):
        options = {key: plain_data(option) for key, option in value.options.items()}
        return {"type": value.type, **options} if options else value.type
    if isinstance(value, Section):
        given = {key: getattr(value, key) for key in type(value).model_fields}
        return {key: plain_data(item) for key, item in given.items() if item is not None}
    if isinstance(value, tuple | list):
        return [plain_data(item) for item in value]
    if isinstance(value, dict):
        return {key: plain_data(item) for key, item in value.items()}
    return value


def _dump(data: Any, *, flow: bool | None, width: float) -> str:
    text: str = yaml.dump(
        data,
        Dumper=_Dumper,
        default_flow_style=flow,
        sort_keys=False,
        allow_unicode=True,
        width=width,
    )
    return text


class _Dumper(yaml.SafeDumper):
    """Quotes what YAML 1.2 would not read as text; PyYAML itself goes by YAML 1.1."""

    def ignore_aliases(self, data: object) -> bool:
        """Write a value again where it comes again, instead of an alias."""
        return True

    def write_text(self, data: str) -> yaml.ScalarNode:
        """Represent text, in quotes if it would mean something else or could not be seen."""
        is_plain = _is_text(data) and data.isprintable()
        return self.represent_scalar("tag:yaml.org,2002:str", data, style=None if is_plain else '"')


_Dumper.add_representer(str, _Dumper.write_text)


def _is_text(word: str) -> bool:
    try:
        return isinstance(resolve(word), str)
    except ValueError:  # ambiguous, or a number too long for Python
        return False

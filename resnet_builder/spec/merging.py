"""How one layer of a spec is laid over another: plain data, before any validation."""

from resnet_builder.errors import SpecPath
from resnet_builder.spec.source import Node, Source
from resnet_builder.spec.structure import is_option, is_part, short_key

_UNITS = frozenset({"steps", "epochs", "seconds"})


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
        main: The file or mapping that the user called the spec. Errors about a mapping of both
            layers point there if one of them is from it, else to the upper layer.
        path: Where in the spec this happens.
    """
    if below is None or not isinstance(above.value, dict):
        return above
    if is_part(path) and "type" in above.value:
        return above
    key = short_key(path)
    if key is not None and isinstance(below.value, str):
        name = Node(below.value, below.place, below.key_place)
        below = Node({key: name}, below.place, below.key_place)
    if not isinstance(below.value, dict):
        return above
    entries = _without_rivals(below.value, above.value, path)
    for key, node in above.value.items():
        if node.value is None and key in entries and is_option((*path, key)):
            del entries[key]
        else:
            entries[key] = merge(entries.get(key), node, main=main, path=(*path, key))
    owner = below if below.place.source is main else above
    return Node(entries, owner.place, owner.key_place)


def _without_rivals(
    below: dict[str, Node], above: dict[str, Node], path: SpecPath
) -> dict[str, Node]:
    """Leave out what is given in a unit other than the upper layer's."""
    given = {key for key in _UNITS & above.keys() if above[key].value is not None}
    rivals = _UNITS - above.keys() if given and path[:1] == ("train",) else frozenset[str]()
    return {key: node for key, node in below.items() if key not in rivals}

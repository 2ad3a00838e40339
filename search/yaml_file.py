"""Reads YAML as the people who write it mean it: see `_Loader`."""

import re
import reprlib
from pathlib import Path
from typing import Any

import yaml

_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"


def read_yaml(path: Path) -> Any:
    """The only document of a file.

    Raises:
        OSError: The file cannot be read.
        YAMLError: It is no YAML, a key stands twice in one mapping, or a value is not what it looks
            like; says where.
    """
    with path.open("rb") as file:
        return yaml.load(file, _Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, and 1:30 and 010 as numbers; takes 1e-3 for a number.

    YAML 1.1 lets the later key silently replace the earlier one, takes 1:30 for 90, to the base 60,
    and 010 for 8, to the base 8, and takes 1e-3 for a text.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """See BaseConstructor, which lets errors of Python's through."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:
            kind = node.tag.rpartition(":")[2]
            problem = f"a value must be a valid {kind}, got {reprlib.repr(node.value)}"
            raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark) from error


def _construct_mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = []
    for key_node, _ in node.value:
        if key_node.tag == "tag:yaml.org,2002:merge":
            continue
        key = loader.construct_object(key_node, deep=True)
        if key in seen:
            problem = f"key {key!r} stands twice"
            raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
        seen.append(key)
    return loader.construct_mapping(node, deep=True)


def _construct_number(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    is_int = node.tag == _INT
    value: float = loader.construct_yaml_int(node) if is_int else loader.construct_yaml_float(node)
    if ":" in node.value or (is_int and re.match(r"[-+]?0[\d_]", node.value)):
        problem = (
            f"a number must have no colon and no leading zero, got {node.value}, which YAML takes "
            f"for {value}: write the number that is meant"
        )
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    return value


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_constructor(_INT, _construct_number)
_Loader.add_constructor(_FLOAT, _construct_number)
_Loader.add_implicit_resolver(
    _FLOAT, re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

"""Reads YAML as the people who write it mean it: see `_Loader`."""

import re
from pathlib import Path
from typing import Any

import yaml


def read_yaml(path: Path) -> Any:
    """The only document of a file.

    Raises:
        OSError: The file cannot be read.
        YAMLError: It is no YAML, or a key stands twice in one mapping; says where.
    """
    with path.open("rb") as file:
        return yaml.load(file, _Loader)


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice, and takes 1e-3 for a number.

    YAML 1.1 lets the later key silently replace the earlier one, and takes 1e-3 for a text.
    """


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


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _construct_mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)

"""YAML and JSON files that people write, read as plain mappings: nothing in them is ever run."""

import json
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from circuitspex.errors import SettingsError

MAX_BYTES = 1_000_000
"""Larger files are refused: no spec is that long, and YAML is slow to read."""


class _Loader(yaml.SafeLoader):
    """Plain values only, and no key twice: of two, one would silently win."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1 and key != "<<":
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} is there twice", node.start_mark
                )
        return super().construct_mapping(node, deep)


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Read a file that holds one mapping with words as keys.

    Args:
        path: A ``.json`` file, or YAML under any other name.

    Returns:
        The mapping; its values are plain YAML values, unchecked.

    Raises:
        SettingsError: If it cannot be read, is too long, or holds something else.
    """
    path = Path(path)
    try:
        raw = path.read_bytes()
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}). Check the path.") from error
    return parse_mapping(raw, str(path), is_json=path.suffix.lower() == ".json")


def parse_mapping(raw: bytes, name: str, *, is_json: bool = False) -> dict[str, Any]:
    """Read one mapping with words as keys.

    Args:
        raw: YAML, which JSON is nearly a part of.
        name: What it is called in messages.
        is_json: Whether it must be JSON.

    Returns:
        The mapping.

    Raises:
        SettingsError: If it is too long, or is something else.
    """
    if len(raw) > MAX_BYTES:
        raise SettingsError(f"{name} has {len(raw):,} bytes; at most {MAX_BYTES:,} are read.")
    try:
        document = json.loads(raw) if is_json else yaml.load(raw, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError, TypeError, OverflowError) as error:
        why = " ".join(str(error).split())[:300]
        kind = "JSON" if is_json else "YAML of plain values"
        raise SettingsError(f"{name} is no {kind}: {why or type(error).__name__}.") from error
    if not isinstance(document, dict) or not all(isinstance(key, str) for key in document):
        raise SettingsError(
            f"{name} must hold names with values, such as 'budget: 4096'; it holds "
            f"{type(document).__name__ if not isinstance(document, dict) else 'other keys'}."
        )
    return document

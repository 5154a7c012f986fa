"""YAML text -> a plain tree of bounded size, or one message: whatever stands in the file.

Nothing that a config can hold, an alias that unfolds to a billion values included, may cost more
than reading it, and no sign in it may reach a terminal as it is.
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path
from typing import Any

import yaml

from grm_ray.config.errors import ConfigError

_MOST_BYTES = 1 << 20
_MOST_VALUES = 100_000  # unfolded
_MOST_LEVELS = 50
_MOST_DIGITS = 2**63
# A message: so many lines, each of so many characters.
_LINES, _CHARACTERS = 20, 600
# What no text of ours has: control characters, and halves of characters.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
_MERGE = "tag:yaml.org,2002:merge"


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (YAML would silently keep the last), and merges,
    ten of which in a row are as many keys as there are atoms."""

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        for key, _ in node.value:
            if key.tag == _MERGE:
                raise ConfigError(
                    f"line {key.start_mark.line + 1}: '<<' merges keys, which is not supported; "
                    "write them out"
                )


def _mapping(loader: _Loader, node: yaml.MappingNode, deep: bool = False) -> dict:
    loader.flatten_mapping(node)
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=deep)
        line = key_node.start_mark.line + 1
        if not isinstance(key, str):
            raise ConfigError(f"line {line}: a key must be text, not {shown(key)}")
        if key in seen:
            raise ConfigError(f"line {line}: key '{key}' is given twice")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read(path: Path, what: str = "config") -> dict[str, Any]:
    """The mapping in the YAML file `path`.

    Raises:
        ConfigError: no such file, or no mapping in it.
    """
    try:
        if not path.is_file():
            found = "is a folder" if path.is_dir() else "does not exist"
            raise ConfigError(f"{what} file {path} {found}{_nearest(path)}")
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(
                f"{what} file {path}: larger than {_MOST_BYTES} bytes, too large for a {what}"
            )
        raw = parse(path.read_text(encoding="utf-8-sig"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{what} file {path}: cannot be read ({why})") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a {what} must be a mapping of keys to values")
    return raw


def parse(text: str, origin: str) -> Any:
    """The value that YAML `text` says.

    Raises:
        ConfigError: naming `origin`; it is not valid, or no tree that a config may be.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None
    except RecursionError:
        raise ConfigError(f"{origin}: not valid YAML: nested too deeply") from None
    # Tags written by hand (`!!bool maybe`, `!!timestamp x`) end PyYAML in any of these.
    except (yaml.YAMLError, ArithmeticError, AttributeError, LookupError, ValueError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {' '.join(str(error).split())}") from None


def written(tree: dict[str, Any]) -> str:
    """`tree` as YAML, in its own order."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def check_tree(tree: Any, origin: str) -> None:
    """Refuse a tree that is no config, whatever its keys: too deep, too large once its aliases are
    unfolded, within itself, or with values that are neither words nor numbers.

    Raises:
        ConfigError: naming `origin` and the key.
    """
    measured: dict[int, tuple[int, int]] = {}  # of each list or mapping: its values, its levels

    def refuse(where: str, what: str) -> ConfigError:
        return ConfigError(f"{origin}: key '{where}': {what}" if where else f"{origin}: {what}")

    def measure(value: Any, where: str, depth: int) -> tuple[int, int]:
        if isinstance(value, str):
            if odd := _NO_TEXT.search(value):
                raise refuse(where, f"contains {odd[0]!r}, which is not valid text")
        elif isinstance(value, int) and abs(value) >= _MOST_DIGITS:
            raise refuse(where, "a whole number that does not fit in 64 bits")
        elif not isinstance(value, dict | list):
            if value is not None and not isinstance(value, int | float):
                kind = type(value).__name__
                raise refuse(
                    where, f"a {kind}, which is neither text nor a number; quote it to make it text"
                )
        else:
            if id(value) not in measured:
                if depth > _MOST_LEVELS:
                    raise refuse(
                        where, f"nested more than {_MOST_LEVELS} levels deep, or contains itself"
                    )
                measured[id(value)] = inside(value, where, depth)
            return measured[id(value)]
        return 1, 1

    def inside(value: dict | list, where: str, depth: int) -> tuple[int, int]:
        size, levels = 1, 0
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            name = f"{where}[{key}]" if isinstance(value, list) else f"{where}.{key}".lstrip(".")
            measure(key, name, depth)
            parts, below = measure(part, name, depth + 1)
            size, levels = size + parts, max(levels, below)
        if size > _MOST_VALUES or levels >= _MOST_LEVELS:
            raise refuse(
                where,
                f"more than {_MOST_VALUES} values or {_MOST_LEVELS} levels with its aliases "
                "expanded",
            )
        return size, levels + 1

    measure(tree, "", 0)


def shown(value: Any) -> str:
    """A value in a message: short, whatever it is."""
    if isinstance(value, list | tuple | set):
        return "a list" if len(value) > 8 or any(map(_large, value)) else repr(value)
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, int) and abs(value) >= _MOST_DIGITS:
        return "a number of more than 64 bits"
    if isinstance(value, str) and len(value) > 100:
        return f"{value[:100]!r}..."
    return repr(value)


def legible(message: str) -> str:
    """A message as it may stand on a terminal: no sign that is none, and no more than a page."""
    lines = _NO_TEXT.sub(lambda sign: f"\\x{ord(sign[0]):02x}", message).splitlines()
    cut = [f"{line[:_CHARACTERS]} [...]" if len(line) > _CHARACTERS else line for line in lines]
    return "\n".join(cut if len(cut) <= _LINES else [*cut[: _LINES - 1], "[...]"])


def _large(value: Any) -> bool:
    big = isinstance(value, int) and abs(value) >= _MOST_DIGITS
    return big or isinstance(value, list | dict) or (isinstance(value, str) and len(value) > 100)


def _nearest(path: Path) -> str:
    names = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean {path.parent / near[0]}?" if near else ""

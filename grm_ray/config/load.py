"""YAML file + `key.path=value` overrides -> a validated job config, or one readable message."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from grm_ray.config import secrets

J = TypeVar("J", bound=BaseModel)


_NO_SECRETS = (
    "configs are copied into run folders and reports: put it into a file of its own with mode 600 "
    "(rule http: token_file), or into the environment"
)


class ConfigError(ValueError):
    """The configuration or the data is wrong: the user's to mend (exit code 2)."""


class _UniqueKeyLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice (YAML would silently keep the last)."""


def _mapping(loader: _UniqueKeyLoader, node: yaml.MappingNode, deep: bool = False) -> dict:
    seen: set[Any] = set()
    for key_node, _ in node.value:
        key = loader.construct_object(key_node, deep=deep)
        if not isinstance(key, str):
            raise ConfigError(f"line {key_node.start_mark.line + 1}: keys are words, not {key!r}")
        if key in seen:
            raise ConfigError(f"line {key_node.start_mark.line + 1}: key '{key}' stands twice")
        seen.add(key)
    return yaml.SafeLoader.construct_mapping(loader, node, deep=deep)


_UniqueKeyLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(schema: type[J], path: str | Path, overrides: list[str] | None = None) -> J:
    """Read `path`, apply `key.path=value` overrides, validate against `schema`.

    Raises:
        ConfigError: naming the file, the key and what would be right.
    """
    path = Path(path)
    raw = _read(path)
    for override in overrides or []:
        _override(raw, override)
    return validate(schema, raw, str(path))


def validate(schema: type[J], raw: dict[str, Any], origin: str) -> J:
    """`raw` as `schema`, or a `ConfigError` that names `origin` and every wrong key."""
    if found := list(secrets.find(raw)):
        raise ConfigError(
            "\n".join(f"{origin}: key '{key}': {what}; {_NO_SECRETS}" for key, what in found)
        )
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        lines = [_explain(schema, item) for item in error.errors()]
        raise ConfigError("\n".join(f"{origin}: {line}" for line in lines)) from None


def dump(config: BaseModel) -> str:
    """The complete config as YAML, in the schema's order."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        near = difflib.get_close_matches(path.name, _names(path.parent), n=1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else ""
        raise ConfigError(f"config file {path} does not exist{hint}")
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a config is a mapping of keys to values")
    return raw


def _names(folder: Path) -> list[str]:
    return [p.name for p in folder.glob("*.yaml")] if folder.is_dir() else []


def apply(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set `key.path` of a config that is not validated yet.

    Raises:
        ConfigError: a part of the path is a value.
    """
    *parents, last = key.split(".")
    node = raw
    for depth, parent in enumerate(parents):
        child = node.get(parent)
        if child is None:
            child = node[parent] = {}
        if not isinstance(child, dict):
            raise ConfigError(
                f"override '{key}': {'.'.join(parents[: depth + 1])} is a value, not a section"
            )
        node = child
    node[last] = value


def _override(raw: dict[str, Any], override: str) -> None:
    key, sign, value = override.partition("=")
    if not sign or not key:
        raise ConfigError(f"override '{override}': write key.path=value")
    try:
        apply(raw, key, yaml.safe_load(value))
    except yaml.YAMLError:
        raise ConfigError(f"override '{override}': the value is not valid YAML") from None


def _explain(schema: type[BaseModel], item: Any) -> str:
    location = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in item["loc"])[1:]
    if item["type"] == "extra_forbidden":
        known = _fields_at(schema, item["loc"][:-1])
        near = difflib.get_close_matches(str(item["loc"][-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key '{location}'; {hint}"
    if item["type"] == "missing":
        return f"key '{location}' is missing"
    message = item["msg"].removeprefix("Value error, ")
    if not location:
        return message
    given = item.get("input")
    shown = "" if isinstance(given, dict | BaseModel) else f" (given: {given!r})"
    return f"key '{location}': {message}{shown}"


def _fields_at(schema: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = schema
    for part in location:
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            continue
        options = [field.annotation, *get_args(field.annotation)]
        current = next((o for o in options if hasattr(o, "model_fields")), current)
    return sorted(current.model_fields)

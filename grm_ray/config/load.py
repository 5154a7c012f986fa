"""YAML file + `key.path=value` overrides -> a validated job config, or one readable message."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ValidationError

from grm_ray.config import secrets
from grm_ray.config.document import check_tree, parse, read, shown, written
from grm_ray.config.errors import ConfigError

J = TypeVar("J", bound=BaseModel)
_TOLD = 10  # wrong keys, each in a line; whoever wrote more has misunderstood something else


_NO_SECRETS = (
    "configs are copied into run folders and reports: put it in a file of its own with mode 600 "
    "(rule http: token_file), or in the environment"
)


def load(
    schema: type[J], path: str | Path, overrides: list[str] | None = None, what: str = "config"
) -> J:
    """Read `path`, apply `key.path=value` overrides, validate against `schema`.

    Args:
        what: the file is, for a message.

    Raises:
        ConfigError: naming the file, the key and what would be right.
    """
    path = Path(path)
    raw = read(path, what)
    for override in overrides or []:
        _override(raw, override)
    return validate(schema, raw, str(path))


def validate(schema: type[J], raw: dict[str, Any], origin: str) -> J:
    """`raw` as `schema`, or a `ConfigError` that names `origin` and every wrong key."""
    check_tree(raw, origin)
    if found := list(secrets.find(raw)):
        raise ConfigError(
            "\n".join(f"{origin}: key '{key}': {what}; {_NO_SECRETS}" for key, what in found)
        )
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        wrong = error.errors()
        lines = [f"{origin}: {_explain(schema, item)}" for item in wrong[:_TOLD]]
        more = [f"{origin}: and {len(wrong) - _TOLD} more"] if len(wrong) > _TOLD else []
        raise ConfigError("\n".join([*lines, *more])) from None


def dump(config: BaseModel) -> str:
    """The complete config as YAML, in the schema's order."""
    return written(config.model_dump(mode="json"))


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
    apply(raw, key, parse(value, f"override '{override}'"))


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
    if item["type"] == "model_type" and "path" in _fields_at(schema, item["loc"]):
        return f"key '{location}': expected a section, such as {{path: {shown(given)}}}"
    said = "" if isinstance(given, dict | BaseModel) else f" (given: {shown(given)})"
    return f"key '{location}': {message}{said}"


def _fields_at(schema: type[BaseModel], location: tuple[Any, ...]) -> list[str]:
    current: Any = schema
    for part in location:
        field = current.model_fields.get(part) if hasattr(current, "model_fields") else None
        if field is None:
            continue
        options = [field.annotation, *get_args(field.annotation)]
        current = next((o for o in options if hasattr(o, "model_fields")), current)
    return sorted(current.model_fields)

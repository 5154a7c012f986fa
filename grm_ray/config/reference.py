"""Every key of a job, as YAML that can be begun with: default, type and meaning of each."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
import yaml
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from grm_ray.config import registry
from grm_ray.config.registry import REGISTRY
from grm_ray.config.schema import Job, Section

_PLAIN = {bool: "true | false", int: "whole number", float: "number", str: "text", Any: "anything"}
_BOUNDS = {
    annotated_types.Gt: ("gt", "above {}"),
    annotated_types.Ge: ("ge", "{} or more"),
    annotated_types.Lt: ("lt", "below {}"),
    annotated_types.Le: ("le", "up to {}"),
}
_NAMES = """
Names that the keys above accept, each with the parameters that can be given beside it. Your own
package.module:function can be used in place of any of them.
"""


def reference(schema: type[Job]) -> str:
    """The keys of `schema`, and the names that such keys may have.

    What is optional stands behind a comment sign; a key that is required has no value.
    """
    lines = [*_comment(schema), *_keys(schema, None, "", {}), ""]
    lines += _lines(_NAMES)
    lines += [line for kind, names in REGISTRY.items() for line in _named(kind, names)]
    return "\n".join(lines) + "\n"


def _keys(
    section: type[BaseModel], given: Any, path: str, seen: dict[type[BaseModel], str]
) -> Iterator[str]:
    """`given`: the section as it is by default, if it is; `seen`: where others have been told."""
    for name, field in section.model_fields.items():
        default = field.get_default(call_default_factory=True)
        value = default if given is None else getattr(given, name)
        required = value is PydanticUndefined
        inner = _section_in(field.annotation)
        alone = inner is not None and field.annotation is inner
        yield from _lines(field.description)
        if inner is not None and alone:
            yield f"{name}:  # required" if required else f"{name}:"
            inside = None if required else value
            yield from (f"  {line}" for line in _nested(inner, inside, f"{path}{name}", seen))
            continue
        kind = _type(field.annotation, field.metadata)
        yield f"{name}:{_written(value)}  # {kind}{'; required' if required else ''}"
        if inner is not None:
            holder, indent = _holder(field.annotation)
            yield from holder
            nested = _nested(inner, None, f"{path}{name}", seen)
            yield from (f"# {indent}{line}" for line in nested)


def _named(kind: str, names: Iterable[str]) -> Iterator[str]:
    if kind not in registry.GIVEN:
        yield f"# {kind}: {', '.join(names)}"
        return
    yield f"# {kind}:"
    key = "stage" if kind == "reward stage" else "name"
    for name in names:
        known = registry.parameters(kind, registry.resolve(kind, name)).values()
        said = [
            f"{p.name}:{' REQUIRED' if p.default is p.empty else _written(p.default)}"
            for p in known
        ]
        yield f"#   {{{', '.join([f'{key}: {name}', *said])}}}" if said else f"#   {name}"


def _holder(annotation: Any) -> tuple[list[str], str]:
    """What stands between a key and a section that is optional, or one of several."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is dict:
        return ["#   NAME:"], "    "
    if origin is list:
        return ["#   -"], "    "
    inside = next((part for part in parts if _section_in(part)), None)
    return ([], "  ") if inside is None else _holder(inside)


def _nested(
    inner: type[BaseModel], given: Any, here: str, seen: dict[type[BaseModel], str]
) -> Iterator[str]:
    if inner in seen and given is None:
        yield f"# keys as in {seen[inner]}"
        return
    seen[inner] = here
    yield from _comment(inner)
    yield from _keys(inner, given, f"{here}.", seen)


def _comment(section: type[BaseModel]) -> Iterable[str]:
    """What a section and those that it is made from say of themselves."""
    own = [s for s in section.__mro__ if issubclass(s, Section) and s is not Section]
    return (line for s in reversed(own) for line in _lines(s.__dict__.get("__doc__")))


def _lines(text: str | None) -> Iterable[str]:
    return (f"# {line}" for line in inspect.cleandoc(text or "").splitlines() if line)


def _written(value: Any) -> str:
    if value is PydanticUndefined:
        return ""
    if isinstance(value, tuple):
        value = list(value)
    return " " + yaml.safe_dump(value, default_flow_style=True, width=10_000).partition("\n")[0]


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section that the value is, or is made of."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return annotation
    found = (_section_in(part) for part in get_args(annotation))
    return next((section for section in found if section is not None), None)


def _type(annotation: Any, metadata: Any = ()) -> str:
    """In words: `whole number, above 0`, `list of text`, `a | b`."""
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _type(parts[0], parts[1:])
    if origin is Literal:
        return " | ".join(map(str, parts))
    if origin in (Union, UnionType):
        return " | ".join(_type(part, metadata) for part in parts)
    if annotation is NoneType:
        return "null"
    if origin in (list, tuple):
        return f"list of {_type(parts[0])}"
    if origin is dict:
        return f"name: {_type(parts[1])}"
    if _section_in(annotation):
        return "section"
    return ", ".join([_PLAIN[annotation], *_bounds(metadata)])


def _bounds(metadata: Any) -> Iterator[str]:
    for item in metadata:
        for bound in getattr(item, "metadata", [item]):  # of pydantic's Field: kept inside
            if found := _BOUNDS.get(type(bound)):
                attribute, words = found
                yield words.format(getattr(bound, attribute))

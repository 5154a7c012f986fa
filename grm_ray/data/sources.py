"""Reading preference pairs and prompts: local files, hub data sets, the embedded demo.

Formats are TRL's, standard (strings) or conversational (lists of messages), with the prompt
explicit or contained in both answers. A row that cannot be used is quarantined with its file,
line and reason; a file that cannot be used is a `ConfigError`.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grm_ray.config.load import ConfigError
from grm_ray.config.schema import Source
from grm_ray.data.adapters import ADAPTERS, Adapter, Unusable, prompt_of
from grm_ray.data.chat import Message

DEMO = Path(__file__).parent / "demo"
_SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow")


class BadRow(ValueError):
    """One row cannot be used; the run goes on without it."""


@dataclass
class Quarantine:
    """Rows left out, each with file, line and reason; written at once, never silently lost."""

    rows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, file: str, line: int, reason: str, row: str | None = None) -> None:
        """`row` names a row whose line is not known any more (it was read well before)."""
        found: dict[str, Any] = {"file": file, "line": line, "reason": reason}
        self.rows.append(found if row is None else {**found, "row": row})

    def counts(self) -> dict[str, int]:
        """How many rows were left out, by reason."""
        counts: dict[str, int] = {}
        for row in self.rows:
            reason = row["reason"].split(":")[0]
            counts[reason] = counts.get(reason, 0) + 1
        return counts

    def write(self, path: Path) -> None:
        with path.open("w", encoding="utf-8") as out:
            out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


@dataclass(frozen=True)
class Pair:
    """One preference: `chosen` was preferred over `rejected` as the answer to `prompt`."""

    prompt: tuple[tuple[str, str], ...]  # (role, content), ends with a user turn
    chosen: str
    rejected: str

    @property
    def prompt_id(self) -> str:
        return prompt_id([{"role": r, "content": c} for r, c in self.prompt])


@dataclass(frozen=True)
class Prompt:
    prompt_id: str
    messages: tuple[tuple[str, str], ...]


def prompt_id(messages: list[Message]) -> str:
    """Name of a prompt: a hash of its conversation, the same in every file and run."""
    text = json.dumps([[m["role"], m["content"]] for m in messages], ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]


def check(source: Source, columns: set[str]) -> str | None:
    """Whether `source` can be opened and has `columns`; what could not be checked offline.

    Raises:
        ConfigError: a missing file, an unknown ending, or missing columns.
    """
    if _is_hub(source.path):
        return f"data set '{source.path}', split '{source.split}' (hub id: not looked up)"
    columns = needed(source, columns)
    for _, _, row in _rows(source, columns):
        if isinstance(row, dict) and columns <= set(row):
            return None
    raise ConfigError(f"{source.path}: no usable row; each needs {_and(columns)}")


def needed(source: Source, columns: set[str]) -> set[str]:
    """The columns to look for in `source`: `columns`, or those of its own format."""
    return columns if source.format == "trl" else set(ADAPTERS[source.format].columns)


def pairs(source: Source, quarantine: Quarantine) -> list[Pair]:
    """All usable, distinct pairs of `source` in file order, `limit` not yet applied.

    Raises:
        ConfigError: when the file is unusable as a whole or no pair is left.
    """
    found: dict[Pair, None] = {}
    adapter = ADAPTERS[source.format]
    for file, line, row in _rows(source, set(adapter.columns)):
        try:
            pair = _pair(_converted(adapter, row))
            if pair in found:
                raise BadRow("duplicate")
            found[pair] = None
        except BadRow as error:
            quarantine.add(file, line, str(error))
    if not found:
        raise ConfigError(f"{source.path} (split '{source.split}'): no usable preference pair")
    return list(found)


def prompts(source: Source, quarantine: Quarantine) -> list[Prompt]:
    """All usable, distinct prompts of `source` in file order.

    Raises:
        ConfigError: when the file is unusable as a whole or no prompt is left.
    """
    found: dict[str, Prompt] = {}
    foreign = source.format != "trl"  # its prompts come out of its pairs
    for file, line, row in _rows(source, needed(source, {"prompt"})):
        try:
            made = (
                prompt_of(_converted(ADAPTERS[source.format], row))
                if foreign
                else _require_object(row)
            )
            messages = _conversation(made.get("prompt"), "prompt")
            prompt = Prompt(prompt_id(messages), _frozen(messages))
            if prompt.prompt_id in found:
                raise BadRow("duplicate")
            found[prompt.prompt_id] = prompt
        except BadRow as error:
            quarantine.add(file, line, str(error))
    if not found:
        raise ConfigError(f"{source.path} (split '{source.split}'): no usable prompt")
    return list(found.values())


# ------------------------------------------------------------------ rows of a file


def _rows(source: Source, columns: set[str]) -> Iterator[tuple[str, int, Any]]:
    """(file, line from 1, row) of the source's split; a broken line comes as a `BadRow`."""
    if _is_hub(source.path):
        yield from _hub_rows(source, columns)
        return
    path = _local(source, columns)
    if path.suffix in {".parquet", ".arrow"}:
        rows = _arrow_rows(path, columns)
    else:
        rows = _json_rows(path)
    seen_columns: set[str] = set()
    usable = False
    for line, row in rows:
        if isinstance(row, dict):
            seen_columns |= set(row)
            usable = usable or columns <= set(row)
            if str(row.get("split", source.split)) != source.split:
                continue
        yield str(path), line, row
    if not usable:
        raise ConfigError(
            f"{path}: needs {_and(columns)}; "
            + (f"found {_and(seen_columns)}" if seen_columns else "it holds no row")
        )


def _local(source: Source, columns: set[str]) -> Path:
    if source.path == "demo":
        name = "preferences.jsonl" if "chosen" in columns else "prompts.jsonl"
        path = DEMO / name
        return path if path.exists() else DEMO / f"{name}.gz"
    path = Path(source.path).expanduser()
    if not path.is_file():
        raise ConfigError(f"data file {source.path} does not exist")
    if not path.name.endswith(_SUFFIXES):
        raise ConfigError(f"data file {source.path}: expected one of {', '.join(_SUFFIXES)}")
    return path


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parse(line)
    except (gzip.BadGzipFile, EOFError, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        return BadRow(f"not valid JSON: {error}")


def _arrow_rows(path: Path, columns: set[str]) -> Iterator[tuple[int, Any]]:
    import pyarrow as pa
    import pyarrow.parquet

    try:
        if path.suffix == ".parquet":
            table = pa.parquet.read_table(path)
        else:
            with pa.memory_map(str(path)) as mapped:
                try:
                    table = pa.ipc.open_file(mapped).read_all()
                except pa.ArrowInvalid:
                    table = pa.ipc.open_stream(mapped).read_all()
    except (pa.ArrowException, OSError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    if not columns <= set(table.column_names):
        raise ConfigError(f"{path}: needs {_and(columns)}; found {_and(set(table.column_names))}")
    for start in range(0, table.num_rows, 1000):
        yield from enumerate(table.slice(start, 1000).to_pylist(), start=start + 1)


def _hub_rows(source: Source, columns: set[str]) -> Iterator[tuple[str, int, Any]]:
    import datasets

    try:
        rows = datasets.load_dataset(source.path, source.subset, split=source.split)
    except Exception as error:  # the hub client raises many kinds; all mean "not to be had"
        raise ConfigError(
            f"data set '{source.path}' is neither a file here nor to be had from the hub: "
            f"{str(error).splitlines()[0] if str(error) else type(error).__name__}"
        ) from None
    if not columns <= set(rows.column_names):
        raise ConfigError(
            f"{source.path}: needs {_and(columns)}; found {_and(set(rows.column_names))}"
        )
    for i, row in enumerate(rows, start=1):
        yield source.path, i, row


def _is_hub(path: str) -> bool:
    """`owner/name`, with no such file or folder here and no data file's ending."""
    local = Path(path).expanduser()
    looks = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    return looks and not local.exists() and not path.endswith(_SUFFIXES)


# ------------------------------------------------------------------ one row


def _require_object(row: Any) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"not an object: {type(row).__name__}")
    return row


def _converted(adapter: Adapter, row: Any) -> dict[str, Any]:
    try:
        return adapter.convert(_require_object(row))
    except Unusable as error:
        raise BadRow(str(error)) from None
    except (KeyError, TypeError) as error:
        raise BadRow(f"not of the named format: {error!r}") from None


def _pair(row: dict[str, Any]) -> Pair:
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise BadRow(f"no '{column}'")
    if row.get("prompt") is not None:
        prompt = _conversation(row["prompt"], "prompt")
        chosen, rejected = _answer(row["chosen"], "chosen"), _answer(row["rejected"], "rejected")
    else:
        prompt, chosen, rejected = _implicit(row["chosen"], row["rejected"])
    if chosen == rejected:
        raise BadRow("identical answers")
    return Pair(_frozen(prompt), chosen, rejected)


def _implicit(chosen: Any, rejected: Any) -> tuple[list[Message], str, str]:
    """TRL's implicit prompt: both answers are whole conversations with a common head."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise BadRow("no 'prompt', and the answers are not conversations")
    good, bad = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if len(good) < 2 or len(bad) < 2 or good[:-1] != bad[:-1]:
        raise BadRow("the two conversations differ before their last turn")
    return (
        _conversation(good[:-1], "prompt"),
        _answer(good[-1:], "chosen"),
        _answer(bad[-1:], "rejected"),
    )


def _conversation(value: Any, name: str) -> list[Message]:
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    messages = _messages(messages, name)
    if messages[-1]["role"] != "user":
        raise BadRow(f"'{name}' does not end with a user turn")
    return messages


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{name}' is neither text nor a list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRow(f"'{name}' holds a message without a role")
        if not isinstance(message.get("content"), str):
            raise BadRow(f"'{name}' holds a message without text content")
        if message["role"] not in {"system", "user", "assistant"}:
            raise BadRow(f"'{name}' holds the unknown role '{message['role']}'")
    if not any(m["content"].strip() for m in value if m["role"] == "user"):
        if value[-1]["role"] != "assistant":
            raise BadRow(f"empty '{name}'")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _answer(value: Any, name: str) -> str:
    if isinstance(value, list):
        messages = _messages(value, name)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRow(f"'{name}' is not one assistant turn")
        value = messages[0]["content"]
    if not isinstance(value, str):
        raise BadRow(f"'{name}' is neither text nor a list of messages")
    if not value.strip():
        raise BadRow(f"empty '{name}'")
    return value


def _frozen(messages: list[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((m["role"], m["content"]) for m in messages)


def _and(columns: set[str]) -> str:
    return "columns " + ", ".join(f"'{c}'" for c in sorted(columns))

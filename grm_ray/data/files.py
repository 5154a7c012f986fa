"""Rows of a source, one after another: local files, hub data sets, the embedded demo.

A path may be one file, a folder of shards or a pattern (`data/train-*.parquet`). Nothing is held
but the rows at hand: JSON is read by line, Parquet and Arrow by record batch, a hub data set as a
stream. A file that cannot be used is a `ConfigError` that names it.
"""

from __future__ import annotations

import glob
import gzip
import hashlib
import json
import re
import zlib
from codecs import BOM_UTF8
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from itertools import chain
from pathlib import Path
from typing import IO, Any

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Source
from grm_ray.data.records import BadRow

DEMO = Path(__file__).parent / "demo"
SUFFIXES = (".jsonl", ".jsonl.gz", ".json", ".parquet", ".arrow")

_SPLITS = {"train", "test", "validation", "val", "dev", "eval"}
# Beside saved data sets.
_NOT_ROWS = {"dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json"}
_CHARACTERS = 1 << 20  # of a JSON array, read at once
_BETWEEN = re.compile(r"[ \t\r\n,]*")  # its elements


def rows(
    source: Source,
    columns: set[str],
    hub: dict[str, Any] | None = None,
    passed: dict[str, int] | None = None,
) -> Iterator[tuple[str, int, Any]]:
    """(file, line from 1, row) of the source's split; a broken line comes as a `BadRow`.

    Args:
        columns: what a usable row has; a file without one such row is refused.
        hub: arguments of `datasets.load_dataset`, where they are not the usual ones.
        passed: filled with file -> rows that `source.where` leaves out.

    Raises:
        ConfigError: a file or data set cannot be read, or lacks columns.
    """
    found = _hub_rows(source, columns, hub) if is_hub(source.path) else _file_rows(source, columns)
    wanted, known, any_row = source.where, set[str](), False
    for file, line, row in found:
        if wanted and isinstance(row, dict):
            any_row = True
            known |= set(wanted) & set(row)
            if any(row.get(name) != value for name, value in wanted.items()):
                if passed is not None:
                    passed[file] = passed.get(file, 0) + 1
                continue
        yield file, line, row
    if any_row and set(wanted) - known:
        raise ConfigError(f"{source.path}: where: no row has the {named(set(wanted) - known)}")


def digest(source: Source, columns: AbstractSet[str] = frozenset({"chosen"})) -> str:
    """Name of what a source holds now: a hash of its files, or the hub data set's id.

    Args:
        columns: what is read; the demo has pairs and prompts in files of their own.

    Raises:
        ConfigError: there is no such file.
    """
    if is_hub(source.path):
        return source.path
    found = hashlib.sha256()
    for path in _local(source, columns):
        found.update(path.name.encode())
        with path.open("rb") as file:
            found.update(hashlib.file_digest(file, "sha256").digest())
    return found.hexdigest()


def named(columns: set[str]) -> str:
    """Columns as a message names them."""
    return "columns " + ", ".join(f"'{c}'" for c in sorted(columns))


def looks_like_hub_id(path: str) -> bool:
    """`owner/name`, whatever lies here."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~"))


def is_hub(path: str) -> bool:
    """`owner/name`, with no such file or folder here and no data file's ending."""
    local = Path(path).expanduser()
    looks = looks_like_hub_id(path)
    return looks and not local.exists() and not path.endswith(SUFFIXES) and not _is_pattern(path)


# ------------------------------------------------------------------ local files


def _file_rows(source: Source, columns: set[str]) -> Iterator[tuple[str, int, Any]]:
    seen: set[str] = set()
    other_splits: set[str] = set()
    usable = ours = False
    first_bad: BadRow | None = None
    for path in _local(source, columns):
        columnar = path.suffix in {".parquet", ".arrow"}
        for line, row in _columnar_rows(path, columns) if columnar else _json_rows(path):
            first_bad = first_bad or (row if isinstance(row, BadRow) else None)
            if isinstance(row, dict):
                seen |= set(row)
                usable = usable or columns <= set(row)
                if not _of_split(row, source.split):
                    other_splits.add(str(row["split"]))
                    continue
            ours = True
            yield str(path), line, row
    if other_splits and not ours:
        raise ConfigError(
            f"{source.path}: no row of split '{source.split}'; the splits are "
            f"{', '.join(sorted(other_splits))}"
        )
    if not usable:
        why = f" that can be read (the first: {first_bad})" if first_bad else ""
        raise ConfigError(
            f"{source.path}: needs {named(columns)}; "
            + (f"found {named(seen)}" if seen else f"it has no rows{why}")
        )


def _local(source: Source, columns: AbstractSet[str]) -> list[Path]:
    """The files of a source, in the order of their names."""
    if source.path == "demo":
        name = "preferences.jsonl" if "chosen" in columns else "prompts.jsonl"
        return [DEMO / name]
    path = Path(source.path).expanduser()
    if path.is_dir():
        return _shards(path, source)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            raise ConfigError(
                f"data file {source.path}: its name must end in one of {', '.join(SUFFIXES)}"
            )
        return [path]
    if _is_pattern(source.path):
        names = sorted(glob.glob(str(path), recursive=True))
        files = [Path(name) for name in names if name.endswith(SUFFIXES)]
        if not files:
            raise ConfigError(
                f"data files {source.path}: no file that ends in {', '.join(SUFFIXES)} matches"
            )
        return files
    raise ConfigError(f"data file {source.path} does not exist")


def _shards(folder: Path, source: Source) -> list[Path]:
    """A folder's data files; where their names begin with splits, those of the source's split.

    Other folders inside one that has splits are other data sets of the same repository, as the
    hub has them.

    Raises:
        ConfigError: there are none, or others beside them that would not be read.
    """
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.name.endswith(SUFFIXES) and path.name not in _NOT_ROWS and path.is_file()
    )
    if not files:
        raise ConfigError(
            f"data folder {source.path}: has no file that ends in {', '.join(SUFFIXES)}"
        )
    described = [path for path in files if path.suffix == ".json"]
    if len(described) < len(files):
        _refuse_unread(folder, source, described, "files with one row per line or with columns")
    splits = {path: _split_of(path) for path in files}
    named_splits = {
        split
        for split in splits.values()
        if split == source.split or split.split("_")[0] in _SPLITS
    }
    if not named_splits:
        return files
    if source.split in _SPLITS:  # a name of one's own (`train_prefs`) says which files by itself
        beside_them = {path.parent for path, split in splits.items() if split in _SPLITS}
        others = [p for p in files if splits[p] not in _SPLITS and p.parent in beside_them]
        beside = f"files of the splits {', '.join(sorted(named_splits))}"
        _refuse_unread(folder, source, others, beside)
    ours = [path for path in files if _same_split(splits[path], source.split)]
    if not ours:
        raise ConfigError(
            f"data folder {source.path}: no file of split '{source.split}'; the splits are "
            f"{', '.join(sorted(named_splits))} (name one of them, or a pattern)"
        )
    return ours


def _split_of(path: Path) -> str:
    """`train` of `train-00000-of-00001.parquet` and `train_1.jsonl`; `train_prefs` is another."""
    name = path.name.split(".")[0].split("-")[0]
    split, _, number = name.partition("_")
    return split if number.isdigit() else name


def _refuse_unread(folder: Path, source: Source, unread: list[Path], beside: str) -> None:
    """A folder means all its rows: what is to be left out, a pattern says."""
    if unread:
        names = [str(path.relative_to(folder)) for path in unread[:4]]
        more = f" and {len(unread) - 4} more" if len(unread) > 4 else ""
        raise ConfigError(
            f"data folder {source.path}: {', '.join(names)}{more} would not be read, only the "
            f"{beside}; name the files to read by a pattern, {folder / '*.jsonl'} for example"
        )


def _is_pattern(path: str) -> bool:
    return any(sign in path for sign in "*?[")


def _same_split(one: str, other: str) -> bool:
    return one == other or {one, other} == {"val", "validation"}


def _of_split(row: dict[str, Any], split: str) -> bool:
    own = row.get("split")
    return own is None or _same_split(str(own), split)


def _json_rows(path: Path) -> Iterator[tuple[int, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        if path.suffix == ".json" and _begins_an_array(path):
            with path.open(encoding="utf-8-sig") as text:
                yield from _array_rows(path, text)
            return
        with opener(path, "rb") as lines:
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    yield number, _parse(line)
    except (zlib.error, EOFError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))  # a first line may begin with a mark
    except json.JSONDecodeError as error:
        return BadRow(f"not valid JSON: {error.msg}, at character {error.pos + 1}")
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits is one too
        return BadRow(f"not valid JSON: {error}")


def _begins_an_array(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(256).removeprefix(BOM_UTF8).lstrip().startswith(b"[")


def _array_rows(path: Path, file: IO[str]) -> Iterator[tuple[int, Any]]:
    """The elements of a JSON array, parsed one by one; the line is the element's number."""
    decoder = json.JSONDecoder()
    text, at, ended, number = file.read(_CHARACTERS).lstrip()[1:], 0, False, 0
    wrong: Exception | str = "it is cut off"
    while True:
        between = _BETWEEN.match(text, at)
        at = between.end() if between else at
        if text.startswith("]", at):
            return
        try:
            row, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            row, end, wrong = None, len(text), error
            ended = ended or _is_wrong_for_good(error, len(text))
        if end == len(text):  # the element may go on behind what was read
            if ended:
                raise ConfigError(f"{path}: not a JSON array (element {number + 1}: {wrong})")
            more = file.read(_CHARACTERS)
            ended, text, at = not more, text[at:] + more, 0
            continue
        number += 1
        yield number, row
        at = end


def _is_wrong_for_good(error: Exception, end: int) -> bool:
    """Whether no more text can mend it: the fault lies well before the end of what was read."""
    if not isinstance(error, json.JSONDecodeError) or "Unterminated" in error.msg:
        return False
    return error.pos + len("-Infinity") < end


def _columnar_rows(path: Path, columns: set[str]) -> Iterator[tuple[int, Any]]:
    # Imported here: a job whose data are JSON does without Arrow until it needs it.
    from grm_ray.data import columnar

    yield from columnar.rows(path, lambda found: _check_columns(path, columns, found))


def _check_columns(where: Path | str, columns: set[str], found: Iterable[str]) -> None:
    if not columns <= set(found):
        raise ConfigError(f"{where}: needs {named(columns)}; found {named(set(found))}")


# ------------------------------------------------------------------ hub data sets


def _hub_rows(
    source: Source, columns: set[str], hub: dict[str, Any] | None
) -> Iterator[tuple[str, int, Any]]:
    import datasets

    how = {"name": source.subset, "split": source.split} if hub is None else hub
    try:
        found = datasets.load_dataset(source.path, streaming=True, **how)
    except Exception as error:  # the hub client raises many kinds; all mean "not to be had"
        raise ConfigError(
            f"data set '{source.path}' is neither a local file nor available from the hub: "
            f"{_first_line(error)}"
        ) from None
    for line, row in streamed(found, source.path, columns):
        # A set whose hub split is not the asked one names the split in its rows.
        if how["split"] == source.split or _of_split(row, source.split):
            yield source.path, line, row


def streamed(found: Iterable[Any], path: str, columns: set[str]) -> Iterator[tuple[int, Any]]:
    """(line from 1, row) of a streamed data set, which must have `columns`.

    Raises:
        ConfigError: it lacks columns, or the stream breaks off.
    """
    line, all_rows = 0, iter(found)
    try:
        first = next(all_rows, None)
        if first is None:
            raise ConfigError(f"{path}: it has no rows")
        _check_columns(path, columns, first)
        for line, row in enumerate(chain([first], all_rows), start=1):
            yield line, row
    except ConfigError:
        raise
    except Exception as error:  # of the hub client again: network, disk, format
        raise ConfigError(
            f"data set '{path}' broke off after row {line}: {_first_line(error)}"
        ) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__

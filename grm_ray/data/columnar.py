"""Rows of Parquet and Arrow files, batch by batch, none of them trusted.

Arrow takes a file's offsets and text as they are: read without a look at them, a damaged file ends
the process or gives what was never written. So each batch is validated in full; where that fails,
its rows are looked at one by one, and only those that are damaged are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grm_ray.config.errors import ConfigError
from grm_ray.data.records import BadRow

ROWS_PER_BATCH = 1000
# Of a cell that is damaged, or that Python has nothing for: a year 30,000, a field's name twice.
_DAMAGE = (pa.ArrowException, ArithmeticError, LookupError, TypeError, ValueError)


def rows(path: Path, check_columns: Callable[[list[str]], None]) -> Iterator[tuple[int, Any]]:
    """(line from 1, row as a dict) of a file; a damaged row comes as a `BadRow`.

    Args:
        check_columns: gets the names of the file's columns before any row is read.

    Raises:
        ConfigError: the file as a whole cannot be read.
    """
    line = 1
    try:
        for batch in _batches(path, check_columns):
            for start in range(0, batch.num_rows, ROWS_PER_BATCH):
                yield from enumerate(_sound(batch.slice(start, ROWS_PER_BATCH)), line + start)
            line += batch.num_rows
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({_said(error)})") from None


def _sound(batch: pa.RecordBatch) -> list[Any]:
    try:
        return _validated(batch)
    except _DAMAGE:
        return [_row(batch.slice(number, 1)) for number in range(batch.num_rows)]


def _row(batch: pa.RecordBatch) -> Any:
    try:
        return _validated(batch)[0]
    except _DAMAGE as error:
        return BadRow(f"damaged: {_said(error)}")


def _validated(batch: pa.RecordBatch) -> list[Any]:
    batch.validate(full=True)
    return batch.to_pylist()


def _batches(path: Path, check_columns: Callable[[list[str]], None]) -> Iterator[pa.RecordBatch]:
    if path.suffix == ".parquet":
        with pq.ParquetFile(path) as file:
            check_columns(file.schema_arrow.names)
            yield from file.iter_batches(batch_size=ROWS_PER_BATCH)
        return
    with pa.memory_map(str(path)) as mapped:
        try:
            reader = pa.ipc.open_file(mapped)
        except pa.ArrowInvalid:
            stream = pa.ipc.open_stream(mapped)
            check_columns(stream.schema.names)
            yield from stream
            return
        check_columns(reader.schema.names)
        for number in range(reader.num_record_batches):
            yield reader.get_batch(number)


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

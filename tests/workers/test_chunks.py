"""Rows of many tables are read as if they were one."""

import pyarrow as pa
import pytest

from grm_ray.workers.chunks import Chunks


@pytest.fixture
def pieces():
    """Three tables of 3, 0 and 2 rows; a reference is the table itself."""
    tables = [pa.table({"x": pa.array(rows, pa.int64())}) for rows in ([0, 1, 2], [], [3, 4])]
    return Chunks(tables, [3, 0, 2], fetch=lambda table: table)


@pytest.mark.parametrize("rows", [[4, 0, 2], [1, 1, 3, 1], [3], []])
def test_rows_come_in_the_order_asked_for(pieces, rows):
    found = pieces.take(rows)
    assert found["x"].to_pylist() == rows and found.column_names == ["x"]

"""Parquet and Arrow files that are damaged, or hold what is no row of ours."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Source
from grm_ray.data.sources import Quarantine, pairs

ROWS = [{"prompt": f"p{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(20)]


def write(path, table):
    if path.suffix == ".parquet":
        pq.write_table(table, path)
    else:
        with pa.ipc.new_file(str(path), table.schema) as writer:
            writer.write_table(table)
    return path


def read(path):
    quarantine = Quarantine()
    return [pair.chosen for pair in pairs(Source(path=str(path)), quarantine)], quarantine.rows


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_row_whose_text_is_no_unicode_is_left_out_alone(tmp_path, suffix):
    table = pa.Table.from_pylist(ROWS)
    raw = pa.array([b"ok %d" % i if i != 7 else b"\xff\xfe" for i in range(20)], pa.binary())
    table = table.set_column(1, "chosen", raw.view(pa.string()))
    used, left = read(write(tmp_path / f"rows.{suffix}", table))
    assert used == [f"ok {i}" for i in range(20) if i != 7]
    assert [(row["line"], row["reason"].split(":")[0]) for row in left] == [(8, "damaged")]


def test_offsets_that_point_outside_the_file_end_no_process(tmp_path):
    path = write(tmp_path / "rows.arrow", pa.Table.from_pylist(ROWS))
    whole = path.read_bytes()
    rng = random.Random(0)
    outcomes = set()
    for _ in range(200):
        raw = bytearray(whole)
        for _ in range(3):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw)
        try:
            _, left = read(path)
            outcomes.add("quarantined" if left else "used")
        except ConfigError:
            outcomes.add("refused")
    assert outcomes == {"quarantined", "used", "refused"}


def test_a_file_without_one_sound_row_says_what_is_wrong_with_the_first(tmp_path):
    bad = pa.array([b"\xff"] * 3, pa.binary()).view(pa.string())
    path = write(tmp_path / "rows.arrow", pa.table({"prompt": bad, "chosen": bad, "rejected": bad}))
    with pytest.raises(ConfigError, match="no rows that can be read .the first: damaged: .*UTF8"):
        read(path)

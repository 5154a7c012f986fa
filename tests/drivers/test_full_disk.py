"""What a full disk ends in: one message that names the file, and nothing that was whole is lost."""

import contextlib
from types import SimpleNamespace

import pytest

from grm_ray import report
from grm_ray.config.errors import ConfigError, NotWritten
from grm_ray.config.schema import Job
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import scoring, subjobs
from grm_ray.drivers.best_of_n.shards import LeftOut
from grm_ray.drivers.curate import run as curate
from grm_ray.drivers.curate import votes
from grm_ray.reporting.document import put


@pytest.fixture
def full_disk(small_disk):
    (small_disk / "figures.json").write_text("before")
    with contextlib.suppress(OSError):
        (small_disk / "filler").write_bytes(bytes(4 << 20))
    return small_disk


def left_out(folder):
    rows = Quarantine()
    rows.add("pairs.jsonl", 1, "no prompt")
    rows.write(folder / "quarantine.jsonl")


def left_out_of_shards(folder):
    rows = LeftOut(folder / "quarantine.jsonl")
    rows.now.add("prompts.jsonl", 1, "no prompt")
    rows.flush()


def fold(folder):
    pair = SimpleNamespace(
        key=b"k", names=(b"p", b"a"), prompt=[], chosen="a", rejected="b", margin=None, smoothing=0
    )
    votes._write_fold(folder / "folds", [pair], [0], 0)


WRITTEN = {
    "shard-000000.parquet": lambda at: scoring.write(scoring.SCORED.empty_table(), at),
    "figures.json": lambda at: put(at, "after"),
    "quarantine.jsonl": lambda at: left_out(at.parent),
    "curated.parquet": lambda at: curate._write(
        iter(()), SimpleNamespace(columns=dict, flipped_P=[]), at
    ),
    "folds": lambda at: fold(at.parent),
    "job.yaml": lambda at: subjobs.call("none", Job(name="cell"), at, False),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_what_a_full_disk_takes_is_named(full_disk, name):
    named = rf"^{full_disk}/{name} could not be written \(.*No space left.*\): free space there"
    with pytest.raises(NotWritten, match=named):
        WRITTEN[name](full_disk / name)
    assert (full_disk / "figures.json").read_text() == "before"


def test_rows_that_shards_leave_out_are_no_less(full_disk):
    with pytest.raises(NotWritten, match=r"quarantine.jsonl could not be written \(No space left"):
        left_out_of_shards(full_disk)


def test_a_folder_on_a_full_disk_is_refused_before_anything_is_written(full_disk):
    with pytest.raises(ConfigError, match=f"^folder {full_disk}/study: No space left"):
        subjobs.open_folder(full_disk / "study")
    assert not any((full_disk / "study").iterdir())


def test_a_page_that_finds_no_room_is_told_in_one_line(full_disk, capsys):
    (full_disk / "metrics.jsonl").touch()
    assert report.main([str(full_disk)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {full_disk}/report.html could not be written (No space left")
    assert said.count("\n") == 1

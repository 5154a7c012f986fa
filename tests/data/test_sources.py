"""Every TRL preference form is read; what cannot be used is quarantined with its reason."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grm_ray.config.load import ConfigError
from grm_ray.config.schema import Source
from grm_ray.data import sources
from grm_ray.data.sources import Quarantine


def turn(role, content):
    return {"role": role, "content": content}


STANDARD = {"prompt": "Hi?", "chosen": "Yes.", "rejected": "No."}
CONVERSATION = {
    "prompt": [turn("user", "Hey?")],
    "chosen": [turn("assistant", "Yes.")],
    "rejected": [turn("assistant", "No.")],
}
IMPLICIT = {
    "chosen": [turn("user", "Ho?"), turn("assistant", "Yes.")],
    "rejected": [turn("user", "Ho?"), turn("assistant", "No.")],
}


def write(path, rows):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt") as out:
        out.writelines((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows)
    return Source(path=str(path))


def read(source):
    quarantine = Quarantine()
    return sources.pairs(source, quarantine), quarantine


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_all_forms_are_read(tmp_path, name):
    pairs, quarantine = read(write(tmp_path / name, [STANDARD, CONVERSATION, IMPLICIT]))
    assert [p.prompt[-1][1] for p in pairs] == ["Hi?", "Hey?", "Ho?"]
    assert all((p.chosen, p.rejected) == ("Yes.", "No.") for p in pairs)
    assert not quarantine.rows


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("{broken", "not valid JSON"),
        ("[1]", "not an object"),
        ("\xff", "not valid JSON"),
        ({**STANDARD, "chosen": ""}, "empty 'chosen'"),
        ({**STANDARD, "chosen": "No."}, "identical answers"),
        ({**STANDARD, "rejected": None}, "no 'rejected'"),
        ({**STANDARD, "chosen": 3}, "'chosen' is neither text"),
        ({**STANDARD, "prompt": [turn("assistant", "x")]}, "does not end with a user turn"),
        ({**STANDARD, "prompt": [turn("wizard", "x")]}, "unknown role 'wizard'"),
        ({**STANDARD, "prompt": [{"role": "user"}]}, "without text content"),
        (STANDARD, "duplicate"),
        ({"chosen": "a", "rejected": "b"}, "no 'prompt'"),
    ],
)
def test_a_bad_row_is_left_out_and_named(tmp_path, row, reason):
    source = write(tmp_path / "a.jsonl", [STANDARD, row])
    pairs, quarantine = read(source)
    assert len(pairs) == 1
    (entry,) = quarantine.rows
    assert entry["line"] == 2 and entry["file"].endswith("a.jsonl") and reason in entry["reason"]
    quarantine.write(tmp_path / "q.jsonl")
    assert json.loads((tmp_path / "q.jsonl").read_text()) == entry


def test_parquet_and_arrow(tmp_path):
    table = pa.Table.from_pylist([STANDARD])
    pq.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "a.arrow"), "wb") as out, pa.ipc.new_file(out, table.schema) as w:
        w.write_table(table)
    for name in ("a.parquet", "a.arrow"):
        assert len(read(Source(path=str(tmp_path / name)))[0]) == 1


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "it holds no row"),
        ([{"prompt": "x"}], "needs columns 'chosen', 'rejected'; found columns 'prompt'"),
        (["{broken"], "needs columns"),
        ([{**STANDARD, "chosen": ""}], "no usable preference pair"),
        ([{**STANDARD, "split": "test"}], "no usable preference pair"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path / "a.jsonl", rows))


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read(Source(path=str(tmp_path / "no.jsonl")))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match="expected one of"):
        read(Source(path=str(tmp_path / "a.txt")))
    (tmp_path / "a.jsonl.gz").write_text("not gzip")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(Source(path=str(tmp_path / "a.jsonl.gz")))


def test_hub_ids_are_named_as_unchecked():
    assert "not looked up" in sources.check(Source(path="owner/name"), {"prompt"})


def test_unified_feedback_rows_become_pairs_and_prompts(tmp_path):
    def conversation(answer):
        return [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": answer}]

    def row(a, b):
        return {
            "conv_A": conversation("A"),
            "conv_A_rating": a,
            "conv_B": conversation("B"),
            "conv_B_rating": b,
        }

    file = tmp_path / "uf.jsonl"
    rows = [row(1.0, 0.0), row(0.0, 2.0), row(1.0, 1.0)]
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    source = Source(path=str(file), format="unified_feedback")
    quarantine = Quarantine()
    found = sources.pairs(source, quarantine)
    assert [(p.chosen, p.rejected) for p in found] == [("A", "B"), ("B", "A")]
    assert quarantine.rows[0]["line"] == 3 and "tie" in quarantine.rows[0]["reason"]
    assert [p.messages for p in sources.prompts(source, Quarantine())] == [(("user", "Why?"),)]
    with pytest.raises(ConfigError, match="'conv_A_rating'"):
        sources.check(Source(path=str(tiny_rows(tmp_path)), format="unified_feedback"), {"prompt"})


def tiny_rows(folder):
    file = folder / "other.jsonl"
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    return file

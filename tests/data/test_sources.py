"""Every TRL preference form is read; what cannot be used is quarantined with its reason."""

import gzip
import json
import math
from decimal import Decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import PairSource, Source
from grm_ray.data import sources
from grm_ray.data.records import Pair
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
        ([], "it has no rows"),
        ([{"prompt": "x"}], "needs columns 'chosen', 'rejected'; found columns 'prompt'"),
        (["{broken"], "needs columns"),
        ([{**STANDARD, "chosen": ""}], "no usable preference pair"),
        ([{**STANDARD, "split": "test"}], "no row of split 'train'; the splits are test"),
    ],
)
def test_an_unusable_file_is_refused(tmp_path, rows, message):
    with pytest.raises(ConfigError, match=message):
        read(write(tmp_path / "a.jsonl", rows))


def test_missing_and_unknown_files(tmp_path):
    with pytest.raises(ConfigError, match="does not exist"):
        read(Source(path=str(tmp_path / "no.jsonl")))
    (tmp_path / "a.txt").write_text("x")
    with pytest.raises(ConfigError, match="its name must end in"):
        read(Source(path=str(tmp_path / "a.txt")))
    (tmp_path / "a.jsonl.gz").write_text("not gzip")
    with pytest.raises(ConfigError, match="cannot be read"):
        read(Source(path=str(tmp_path / "a.jsonl.gz")))


def test_hub_ids_are_named_as_unchecked():
    assert "not looked up" in sources.check(Source(path="owner/name"), {"prompt"})


# ------------------------------------------------------------------ one pair twice, or turned


def test_a_pair_that_contradicts_an_earlier_one_is_left_out_and_named(tmp_path):
    turned = {**STANDARD, "chosen": "No.", "rejected": "Yes."}
    other = {**STANDARD, "prompt": "Else?"}
    pairs, quarantine = read(write(tmp_path / "a.jsonl", [STANDARD, turned, turned, other]))
    assert [(p.prompt[0][1], p.chosen) for p in pairs] == [("Hi?", "Yes."), ("Else?", "Yes.")]
    reasons = [(row["line"], row["reason"]) for row in quarantine.rows]
    assert reasons == [(2, "contradicts an earlier row"), (3, "contradicts an earlier row")]
    assert quarantine.counts() == {"contradicts an earlier row": 2}


def test_extra_columns_are_read_and_must_be_what_they_say(tmp_path):
    full = {**STANDARD, "margin": 2, "label_smoothing": 0.1, "subset": "chat"}
    wrong = [
        {**STANDARD, "margin": "2"},
        {**STANDARD, "margin": True},
        {**STANDARD, "margin": float("inf")},
        {**STANDARD, "label_smoothing": 2.0},
        {**STANDARD, "subset": ["chat"]},
        {**STANDARD, "prompt": "half \ud800 a character"},
    ]
    pairs, quarantine = read(write(tmp_path / "a.jsonl", [full, *wrong]))
    (pair,) = pairs
    assert (pair.margin, pair.smoothing, pair.subset) == (2.0, 0.1, "chat")
    reasons = [row["reason"].split(":")[0] for row in quarantine.rows]
    assert reasons == [
        *["'margin' is not a number"] * 3,
        "'label_smoothing' is not a probability",
        "'subset' is not text",
        "'prompt' is not valid Unicode",
    ]


def test_a_number_that_is_missing_costs_no_row_and_a_decimal_is_a_number(tmp_path):
    numbers = {"nan": [math.nan, 2.0, math.inf], "decimal": [Decimal("0.25"), Decimal(2), None]}
    for name, margins in numbers.items():
        rows = [{**STANDARD, "prompt": f"P{i}?", "margin": m} for i, m in enumerate(margins)]
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    pairs, quarantine = read(Source(path=str(tmp_path / "nan.parquet")))
    assert [p.margin for p in pairs] == [None, 2.0]
    assert quarantine.counts() == {"'margin' is not a number": 1}
    pairs, quarantine = read(Source(path=str(tmp_path / "decimal.parquet")))
    assert [p.margin for p in pairs] == [0.25, 2.0, None] and not quarantine.rows
    assert all(isinstance(p.margin, float | None) for p in pairs)


def test_what_curation_dropped_is_not_read(tmp_path):
    dropped = {**STANDARD, "action": "drop", "strength_mean": -1.0}
    kept = {**STANDARD, "prompt": "Ho?", "action": "keep", "strength_mean": 1.0}
    pairs, quarantine = read(write(tmp_path / "a.jsonl", [dropped, kept]))
    assert [p.prompt[0][1] for p in pairs] == ["Ho?"]
    assert quarantine.counts() == {"dropped by curation": 1}


def numbered_rows(count):
    return [{**STANDARD, "prompt": f"Question {i}?"} for i in range(count)]


def test_flips_are_of_the_pair_and_not_of_its_place(tmp_path):
    rows = numbered_rows(400)
    file = write(tmp_path / "a.jsonl", rows)
    backward = write(tmp_path / "b.jsonl", rows[::-1])
    turned = write(tmp_path / "c.jsonl", [{**r, "chosen": "No.", "rejected": "Yes."} for r in rows])

    def labels(source, flip, seed=3):
        source = PairSource(path=source.path, flip=flip)
        pairs = sources.iterate(source, Quarantine(), seed)
        return {pair.prompt[0][1]: pair.chosen for pair in pairs}

    flipped = labels(file, 0.25)
    assert 60 < sum(chosen == "No." for chosen in flipped.values()) < 140
    assert labels(backward, 0.25) == flipped
    assert labels(file, 0.25, seed=4) != flipped
    # Twice is not at all: the same pairs are chosen whichever way round the file has them.
    assert {q: {"Yes.": "No.", "No.": "Yes."}[a] for q, a in flipped.items()} == labels(
        turned, 0.25
    )
    assert set(labels(file, 1.0).values()) == {"No."}


# ------------------------------------------------------------------ contests, prompts, grades


def test_a_limited_contest_set_is_the_seeds_and_keeps_the_files_order(tmp_path):
    file = write(tmp_path / "a.jsonl", [*numbered_rows(50), numbered_rows(1)[0]])

    def read_contests(seed=0, **keys):
        found = list(sources.contests(Source(path=file.path, **keys), Quarantine(), seed))
        return [int(c.prompt[0][1].split()[1].rstrip("?")) for c in found]

    assert read_contests() == list(range(50))
    some = read_contests(limit=10)
    assert some == sorted(some) and len(set(some)) == 10 and some != list(range(10))
    assert read_contests(limit=10) == some != read_contests(1, limit=10)
    assert read_contests(limit=10, shuffle=False) == list(range(10))


def test_contests_of_one_prompt_are_cut_to_their_number(tmp_path):
    rows = [{**STANDARD, "prompt": f"P{i % 2}", "chosen": f"answer {i}"} for i in range(12)]
    file = write(tmp_path / "a.jsonl", rows)
    found = list(sources.contests(Source(path=file.path, pairs_per_prompt=2), Quarantine()))
    assert sorted(c.prompt[0][1] for c in found) == ["P0", "P0", "P1", "P1"]
    assert all(len(c.chosen) == len(c.rejected) == 1 for c in found)


def test_prompts_longer_than_max_characters_are_left_out(tmp_path):
    kind = [turn("system", "Be kind."), turn("user", "Hi?")]
    file = write(tmp_path / "a.jsonl", [{"prompt": p} for p in ("Hi?", "How are you?", kind)])
    quarantine = Quarantine()
    found = sources.prompts(Source(path=file.path, max_characters=10), quarantine)
    assert [p.messages[-1][1] for p in found] == ["Hi?"]
    assert quarantine.counts() == {"max_characters": 2}
    with pytest.raises(ConfigError, match="no usable prompt: 3 max_characters"):
        sources.prompts(Source(path=file.path, max_characters=2), Quarantine())


def test_prompts_with_other_spelling_or_system_turn_are_the_same_to_a_reader():
    def named(*turns):
        return Pair(turns, "a", "b").plain_prompt

    one = named(("user", "What is a  CAT?\n"))
    assert one == named(("system", "Be kind."), ("user", "what is a cat?"))
    assert one == named(("user", "What is\u00a0a ｃａｔ?"))
    assert one != named(("user", "What is a dog?"))
    assert one != named(("user", "What is"), ("user", "a cat?"))


def test_graded_answers_are_read_with_what_is_not_graded(tmp_path):
    row = {"prompt": "Hi?", "response": "Yes.", "help": 4, "length": 1.5}
    rows = [
        row,
        row,
        {**row, "response": "No.", "help": None},
        {**row, "response": "Oh.", "help": None, "length": None},
        {**row, "response": "Ah.", "help": "4"},
        {**row, "response": ""},
    ]
    quarantine = Quarantine()
    source = write(tmp_path / "a.jsonl", rows)
    found = list(sources.rated(source, ["help", "length"], quarantine))
    assert [(r.answer, r.labels) for r in found] == [("Yes.", (4, 1.5)), ("No.", (None, 1.5))]
    assert [r["reason"].split(":")[0] for r in quarantine.rows] == [
        "duplicate",
        "none of the attributes is graded",
        "'help' is not a number",
        "empty 'response'",
    ]
    with pytest.raises(ConfigError, match="no graded answers; use helpsteer2"):
        next(sources.rated(Source(path=source.path, format="rm_bench"), ["help"], Quarantine()))
    with pytest.raises(ConfigError, match="needs columns 'help', 'prompt', 'response', 'wit'"):
        list(sources.rated(source, ["help", "wit"], Quarantine()))


def test_rows_that_a_condition_leaves_out_are_counted_once(tmp_path):
    rows = [{**row, "good": i % 3 == 0, "lang": "en"} for i, row in enumerate(numbered_rows(9))]
    file = write(tmp_path / "a.jsonl", rows)
    quarantine = Quarantine()
    found = sources.pairs(Source(path=file.path, where={"good": True, "lang": "en"}), quarantine)
    assert len(found) == 3
    (entry,) = quarantine.rows
    assert entry["rows"] == 6 and "where not met" in entry["reason"]
    assert quarantine.counts() == {"where not met": 6}
    with pytest.raises(ConfigError, match="no row has the columns 'god'"):
        sources.pairs(Source(path=file.path, where={"god": True}), Quarantine())


def test_a_reason_that_quotes_a_row_is_one_line_that_can_be_read(tmp_path):
    path = tmp_path / "rows.jsonl"
    turns = [{"role": "a\0\nb" + "c" * 5000, "content": "x"}]
    path.write_text(json.dumps({"prompt": turns, "chosen": "a", "rejected": "b"}) + "\n")
    quarantine = Quarantine()
    with pytest.raises(ConfigError):
        list(sources.iterate(Source(path=str(path)), quarantine))
    reason = quarantine.rows[0]["reason"]
    assert "unknown role 'a\\x00 bccc" in reason and len(reason) < 700

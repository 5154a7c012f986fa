"""Two readings give the rows that one decision chose; no prompt is trained and judged on."""

import json

import numpy as np
import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import PairData
from grm_ray.data import sources, survey
from grm_ray.data.sources import Quarantine


def row(prompt, number=0, **more):
    return {"prompt": prompt, "chosen": f"good {number}", "rejected": f"bad {number}", **more}


def write(path, rows):
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(path)


def planned(seed=0, attributes=(), **data):
    data = PairData.model_validate(data)
    quarantine = Quarantine()
    return data, survey.plan(data, seed, quarantine, attributes), quarantine


def items(data, plan, which, rows_per_chunk=4096):
    return [
        item for chunk in survey.read(data, plan, which, rows_per_chunk) for item in chunk.items
    ]


def asked(found):
    return [item.prompt[-1][1] for item in found]


@pytest.fixture
def two(tmp_path):
    """60 pairs of 20 prompts, with repeated and bad lines between; and 10 of other prompts."""
    rows = [row(f"Q{i % 20}", i) for i in range(60)]
    rows[7:7] = [rows[3], {"prompt": "x", "chosen": "", "rejected": "y"}, rows[3]]
    many = write(tmp_path / "many.jsonl", rows)
    few = write(tmp_path / "few.jsonl", [row(f"F{i}", i) for i in range(10)])
    return many, few


def test_a_pair_is_not_repeated_nor_contradicted_by_another_source(tmp_path):
    turned = row("Q1", 1) | {"chosen": "bad 1", "rejected": "good 1"}
    first = write(tmp_path / "a.jsonl", [row(f"Q{i}", i) for i in range(8)])
    second = write(tmp_path / "b.jsonl", [row("Q0", 0), turned, row("Q9", 9)])
    data, plan, quarantine = planned(train=[{"path": first}, {"path": second}], holdout=0.2)
    found = [*items(data, plan, "train"), *items(data, plan, "held_out")]
    assert sorted(asked(found)) == sorted([*(f"Q{i}" for i in range(8)), "Q9"])
    assert quarantine.counts() == {"duplicate": 1, "contradicts an earlier row": 1}


def test_every_chosen_row_comes_once_and_in_the_files_order(two):
    many, few = two
    sources_of = [{"path": many}, {"path": few, "weight": 0.5}]
    data, plan, quarantine = planned(3, train=sources_of, holdout=0.2)
    train, held_out = items(data, plan, "train"), items(data, plan, "held_out")
    everything = [
        *sources.pairs(data.train[0], Quarantine()),
        *sources.pairs(data.train[1], Quarantine()),
    ]
    assert sorted(map(repr, [*train, *held_out])) == sorted(map(repr, everything))
    assert train == [pair for pair in everything if pair in set(train)]
    assert not set(asked(train)) & set(asked(held_out))
    assert len(set(asked(held_out))) == round(0.2 * 30)
    assert plan.counts == [
        sum(p.startswith("Q") for p in asked(train)),
        len(train) - plan.counts[0],
    ]
    assert plan.sets == ["held_out"]
    assert quarantine.counts() == {"duplicate": 2, "empty 'chosen'": 1}


def test_chunks_hold_one_source_each_and_are_numbered_through(two):
    many, few = two
    data, plan, _ = planned(train=[{"path": many}, {"path": few}], holdout=0)
    chunks = list(survey.read(data, plan, "train", rows_per_chunk=25))
    assert [(c.source, c.first, len(c.items)) for c in chunks] == [
        (0, 0, 25),
        (0, 25, 25),
        (0, 50, 10),
        (1, 60, 10),
    ]
    assert np.concatenate([c.rows_B for c in chunks if c.source == 0]).tolist() == [
        n for n in range(62) if n not in (7, 8)
    ]


def test_one_sources_split_is_the_one_that_earlier_runs_drew(two):
    many, _ = two
    for seed in (0, 5):
        data, plan, _ = planned(seed, train={"path": many, "limit": 40}, holdout=0.3)
        pairs = sources.pairs(data.train[0], Quarantine())
        pairs = [pairs[i] for i in np.random.default_rng([seed, 1]).permutation(len(pairs))][:40]
        ids = sorted({pair.prompt_id for pair in pairs})
        out = set(np.random.default_rng(seed).permutation(ids)[: round(0.3 * len(ids))].tolist())
        train = {pair for pair in pairs if pair.prompt_id not in out}
        assert set(items(data, plan, "train")) == train
        assert set(items(data, plan, "held_out")) == set(pairs) - train
        assert plan.left_out == ({"limit or pairs_per_prompt": 20, "held out": 40 - len(train)},)


def test_prompts_of_evaluation_sets_are_not_trained_on_however_they_are_written(tmp_path):
    train = write(
        tmp_path / "train.jsonl", [row("A cat?"), row("A dog?"), row("A  CAT?\n"), row("Fish")]
    )
    one = write(tmp_path / "one.jsonl", [row("a cat?", 9), row("bird", 9)])
    two = write(tmp_path / "two.jsonl", [row("FISH", 9)])
    data, plan, quarantine = planned(
        train={"path": train}, eval={"one": {"path": one}, "two": {"path": two}}
    )
    assert asked(items(data, plan, "train")) == ["A dog?"]
    assert asked(items(data, plan, "one")) == ["a cat?", "bird"]
    assert asked(items(data, plan, "two")) == ["FISH"]
    assert plan.sets == ["one", "two"]
    assert quarantine.counts() == {"prompt shared with an evaluation set": 3}
    with pytest.raises(ValueError, match="there is no set 'three'; the sets are train, one, two"):
        next(survey.read(data, plan, "three"))
    with pytest.raises(ConfigError, match="all their prompts are in the evaluation sets"):
        planned(train={"path": train}, eval={"path": train})


def test_held_out_prompts_are_not_trained_on_in_other_spelling(tmp_path):
    rows = [row(f"Question {i}", i) for i in range(20)] + [
        row(f"QUESTION {i}", i) for i in range(20)
    ]
    data, plan, quarantine = planned(train={"path": write(tmp_path / "a.jsonl", rows)}, holdout=0.2)
    train = {text.lower() for text in asked(items(data, plan, "train"))}
    assert not train & {text.lower() for text in asked(items(data, plan, "held_out"))}
    assert (
        sum(len(r) for r in (*plan.train, *plan.held_out)) + sum(quarantine.counts().values()) == 40
    )


def test_training_labels_are_flipped_and_held_out_ones_are_not(two):
    many, _ = two
    data, plan, _ = planned(train={"path": many, "flip": 1.0}, holdout=0.2)
    assert all(pair.chosen.startswith("bad") for pair in items(data, plan, "train"))
    assert all(pair.chosen.startswith("good") for pair in items(data, plan, "held_out"))
    clean = planned(train={"path": many}, holdout=0.2)[1]
    assert clean.fingerprint != plan.fingerprint
    assert clean.fingerprint == planned(train={"path": many}, holdout=0.2)[1].fingerprint


def test_several_answers_on_a_side_are_pairs(tmp_path):
    rows = [
        {"prompt": f"P{i}", "chosen": ["a"], "rejected": ["b", "c", "d"], "subset": "s"}
        for i in range(4)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    data, plan, _ = planned(train={"path": path, "format": "reward_bench_2"}, holdout=0.25)
    assert len(items(data, plan, "train")) == 9 and len(items(data, plan, "held_out")) == 3


def test_graded_answers_are_planned_by_prompt_as_pairs_are(tmp_path):
    rows = [
        {"prompt": f"P{i // 2}", "response": f"answer {i}", "helpfulness": i % 5} for i in range(40)
    ]
    path = write(tmp_path / "a.jsonl", rows)
    pairs = write(tmp_path / "b.jsonl", [row("P3"), row("other")])
    source = {"path": path, "format": "helpsteer2"}
    data, plan, _ = planned(attributes=("helpfulness",), train=source, holdout=0.1)
    train, held_out = items(data, plan, "train", 7), items(data, plan, "held_out")
    assert len(train) == 36 and len(held_out) == 4 and len(set(asked(held_out))) == 2
    assert all(len(item.labels) == 1 for item in train)
    data, plan, _ = planned(attributes=("helpfulness",), train=source, eval={"path": pairs})
    assert "P3" not in asked(items(data, plan, "train"))
    assert items(data, plan, "held_out")[0].chosen == "good 0"


def test_a_file_that_changed_between_the_readings_is_noticed(tmp_path):
    path = write(tmp_path / "a.jsonl", [row(f"P{i}", i) for i in range(10)])
    data, plan, _ = planned(train={"path": path}, holdout=0)
    write(tmp_path / "a.jsonl", [row(f"P{i}", i) for i in range(8)])
    with pytest.raises(ValueError, match="changed while it was read"):
        items(data, plan, "train")


def test_nothing_left_is_an_error_that_says_of_which_side(tmp_path):
    path = write(tmp_path / "a.jsonl", [row("only", i) for i in range(3)])
    with pytest.raises(ConfigError, match="0 training and 3 held-out pairs left"):
        planned(train={"path": path}, holdout=0.5)

"""A study's cells: what makes one another, what is checked beforehand, and how they are summed."""

import copy
import json

import numpy as np
import pyarrow as pa
import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.judging import StudyJob
from grm_ray.data.sources import Quarantine
from grm_ray.data.tables import SCORED
from grm_ray.drivers import scoring
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.study import grid as study_grid
from grm_ray.drivers.study import run as study
from grm_ray.models.backbone import resolve_dtype
from grm_ray.runtime.placement import Node

WON = {"s0": [1, 1, 1, 0, 0, 0, 1, 1], "s1": [1, 0, 1, 0, 0, 0, 1, 1], "s2": [1] * 8}


@pytest.fixture
def given(tmp_path, tiny_model, tiny_data):
    """A study of two methods and three seeds."""
    return {
        "name": "study",
        "runs": str(tmp_path / "runs"),
        "base": {
            "model": {"path": str(tiny_model), "dtype": "float32", "lora": {"dropout": 0.0}},
            "data": {"train": {"path": str(tiny_data["pairs"])}, "max_length": 64},
            "workers": {"count": 1},
        },
        "vary": {
            "seed": {f"s{i}": {"seed": i} for i in range(3)},
            "method": {"bt": {"loss.alpha": 0.0}, "grm": {"loss.alpha": 0.01}},
        },
        "repeat": "seed",
        "ensembles": ["mean"],
        "baseline": "bt",
        "sets": {"pairs": {"path": str(tiny_data["pairs"])}},
        "scoring": {"dtype": "float32"},
        "judges": {"count": 1},
    }


def cells(given, folder):
    return study_grid.grid(StudyJob(**given), folder)


def keys(given, folder, **changes):
    """The keys of `given` with `key__path=value` changes of its base."""
    given = copy.deepcopy(given)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = given["base"]
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = value
    return [cell.key for cell in cells(given, folder)]


def test_keys_change_with_what_changes_a_result(given, tmp_path):
    before = keys(given, tmp_path)
    assert len(set(before)) == 6
    for changes in (
        {"loss__label_smoothing": 0.1},
        {"training__epochs": 2},
        {"model__lora": {}},
        {"data__train": {"path": given["sets"]["pairs"]["path"], "limit": 10}},
        {"data__eval": {"path": "demo"}},
    ):
        assert not set(before) & set(keys(given, tmp_path, **changes)), changes
    for changes in (
        {"scoring": {"dtype": "bfloat16"}},
        {"seed": 5},
        {"sets": {"pairs": {**given["sets"]["pairs"], "limit": 8}}},
    ):
        assert not set(before) & set(keys(given | changes, tmp_path)), changes


def test_keys_do_not_change_with_defaults_nor_with_where_and_how_fast(given, tmp_path, tiny_data):
    before = keys(given, tmp_path)
    moved = tmp_path / "elsewhere" / tiny_data["pairs"].name
    moved.parent.mkdir()
    moved.write_bytes(tiny_data["pairs"].read_bytes())
    for changes in (
        {"head__kind": "linear"},
        {"loss__missing_margin": None},
        {"training__optimizer": {}},
        {"data__eval": {}},
        {"workers__count": 2},
        {"checkpoint__every": 7},
        {"data__train__path": str(moved)},
    ):
        assert keys(given, tmp_path, **changes) == before, changes
    assert keys(given | {"judges": {"count": 2}}, tmp_path) == before


def test_auto_is_the_dtype_that_it_means_here(given, tmp_path):
    named = keys(given, tmp_path, model__dtype=resolve_dtype("auto"))
    assert keys(given, tmp_path, model__dtype="auto") == named


def test_ranks_count_where_each_drops_out_for_itself(given, tmp_path):
    one = keys(given, tmp_path, model__lora={"dropout": 0.1})
    two = keys(given, tmp_path, model__lora={"dropout": 0.1}, workers__count=2)
    assert not set(one) & set(two)


def test_changed_rows_are_other_rows(given, tmp_path, tiny_data):
    own = tmp_path / "pairs.jsonl"
    own.write_bytes(tiny_data["pairs"].read_bytes())
    given["base"]["data"]["train"]["path"] = str(own)
    before = keys(given, tmp_path)
    own.write_text(own.read_text().replace("cat", "cow"))
    assert not set(before) & set(keys(given, tmp_path))


def test_two_cells_of_one_job_are_refused(given, tmp_path):
    given["vary"]["seed"]["s2"] = {"seed": 1}
    with pytest.raises(ConfigError, match=r"cells s1/bt and s2/bt are the same job"):
        cells(given, tmp_path)


def test_a_cell_cannot_name_its_own_folder(given, tmp_path):
    given["vary"]["seed"]["s2"] = {"name": "mine"}
    with pytest.raises(ConfigError, match=r"vary\.seed\.s2: name is set by the study"):
        cells(given, tmp_path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"vary": {"grm": {"loss.alfa": 0.1}}}, r"cell s0/grm: unknown key 'loss.alfa'"),
        (
            {"vary": {"grm": {"loss.preference": "nothing"}}},
            r"cell s0/grm: key 'loss.preference': unknown",
        ),
        ({"base": {"model": {"path": "./nowhere"}}}, r"cell s0/bt: model folder ./nowhere"),
        ({"base": {"workers": {"count": 9}}}, r"cell s0/bt: the workers ask for 4.5 CPU"),
        ({"judges": {"count": 1, "gpus": 1}}, r"No room for: judge 0"),
        ({"sets": {"pairs": {"path": "none.jsonl"}}}, r"none.jsonl does not exist"),
    ],
)
def test_a_dry_run_finds_what_is_wrong_in_a_cell(given, change, words):
    given["vary"]["method"] |= change.get("vary", {})
    given["base"] |= change.get("base", {})
    given |= {key: value for key, value in change.items() if key in ("judges", "sets")}
    with pytest.raises(ConfigError, match=words):
        check(StudyJob(**given), [Node("here", 2, 0)])


def test_trained_and_judged_code_is_trusted_alike(given):
    given["base"]["model"]["trust_remote_code"] = True
    with pytest.raises(ConfigError, match="scoring.trust_remote_code: false"):
        check(StudyJob(**given))


def test_a_dry_run_shows_the_workers_of_a_cell_and_of_its_judging(given):
    plan = check(StudyJob(**given), [Node("here", 0.5, 0)])
    # One after the other: together they would not fit.
    assert [bundle.role for bundle in plan.bundles] == ["trainer", "judge"]
    assert len(plan.placed) == 2


# ------------------------------------------------------------------ figures of finished cells


def table(won, offset=0.0, scale=1.0):
    """Contest i is won where `won[i]`; every model has a zero point of its own."""
    rows = [
        {
            "contest": i,
            "chosen": chosen,
            "score": offset + scale * (i % 3) + (0.5 if chosen == bool(w) else 0.0),
            "characters": 20 if chosen else 10,
            "subset": "ab"[i % 2],
            "prompt_id": f"p{i}",
        }
        for i, w in enumerate(won)
        for chosen in (True, False)
    ]
    return pa.Table.from_pylist(rows, SCORED)


def summed(given, folder, tables):
    """The summary of cells whose scores are `tables(cell)`."""
    config = StudyJob(**given)
    found = cells(given, folder)
    for cell in found:
        file = folder / "cells" / f"{cell.key}.scores" / f"pairs-{'0' * 16}.parquet"
        scoring.write(tables(cell), file)
    return study.summary(config, found, folder)


def of_seed(cell):
    won = WON[cell.choices["seed"]]
    better = won if cell.choices["method"] == "bt" else [*won[:4], 1, 1, *won[6:]]
    return table(better, offset=100.0 * cell.job.seed)


def test_figures_are_means_over_the_seeds(given, tmp_path):
    result = summed(given, tmp_path, of_seed)
    json.dumps(result, allow_nan=False)
    bt, grm = (result["results"]["pairs"][name] for name in ("bt", "grm"))
    assert bt["accuracy"]["each"] == [5 / 8, 4 / 8, 1]
    assert bt["accuracy"]["mean"] == pytest.approx(17 / 24)
    assert (bt["accuracy"]["contests"], bt["accuracy"]["prompts"], bt["pairs"]) == (8, 8, 8)
    assert bt["subsets"]["a"]["accuracy"]["each"] == [3 / 4, 3 / 4, 1]
    assert result["sets"]["pairs"]["contests"] == 8
    assert grm["versus"]["difference"]["each"] == [2 / 8, 2 / 8, 0]
    assert grm["versus"]["difference"]["mean"] == pytest.approx(4 / 24)
    assert result["repetitions"] == {"factor": "seed", "choices": ["s0", "s1", "s2"]}


def test_a_model_s_zero_point_is_nothing_between_seeds(given, tmp_path):
    """Scores of three seeds, far apart: pooled, the correlation with length would be near 0."""
    length = summed(given, tmp_path, of_seed)["results"]["pairs"]["bt"]["length"]
    alone = [study.judging.judged(study.judging.contests(table(WON[s])), "trl") for s in WON]
    assert length["pearson"] == pytest.approx(np.mean([a["length"]["pearson"] for a in alone]))
    assert length["pearson"] > 0.3


def test_an_ensemble_is_one_model_without_calibration(given, tmp_path):
    result = summed(given, tmp_path, of_seed)
    found = result["results"]["pairs"]
    assert found["bt/mean"]["calibration"] == {"ece": None, "bins": []}
    assert found["bt"]["calibration"]["ece"] is not None
    assert "each" not in found["bt/mean"]["accuracy"]
    # The majority wins: contests 0, 2, 6, 7 and, two to one, contest 1.
    assert found["bt/mean"]["accuracy"]["mean"] == 5 / 8
    assert found["bt/mean"]["versus"]["baseline"] == "bt"
    assert found["bt/mean"]["versus"]["difference"]["each"] == [0, 1 / 8, -3 / 8]


def test_an_interval_over_seeds_is_wider_than_one_over_prompts(given, tmp_path):
    found = summed(given, tmp_path, of_seed)["results"]["pairs"]["bt"]["accuracy"]
    given["vary"]["seed"] = {"s1": {"seed": 1}}
    given["ensembles"] = []
    alone = summed(given, tmp_path, of_seed)["results"]["pairs"]["bt"]["accuracy"]
    assert alone["mean"] == 0.5 and "each" not in alone
    assert found["high"] - found["low"] > alone["high"] - alone["low"]


def test_what_one_template_refuses_counts_for_no_model(given, tmp_path):
    def with_holes(cell):
        scores = of_seed(cell)
        if cell.choices == {"seed": "s1", "method": "grm"}:
            values = scores["score"].to_numpy().copy()
            values[2] = np.nan
            scores = scores.set_column(2, SCORED.field("score"), pa.array(values))
        return scores

    result = summed(given, tmp_path, with_holes)
    assert result["sets"]["pairs"]["contests"] == 7
    assert list(result["left_out"].values()) == [1]


def test_scores_of_two_makings_are_not_chosen_from(given, tmp_path):
    summed(given, tmp_path, of_seed)
    key = cells(given, tmp_path)[0].key
    scoring.write(table([1]), tmp_path / "cells" / f"{key}.scores" / f"pairs-{'1' * 16}.parquet")
    with pytest.raises(ValueError, match=rf"2 files of scores of set 'pairs'.*{key}\.json"):
        study.summary(StudyJob(**given), cells(given, tmp_path), tmp_path)


def test_prompts_in_the_training_files_are_counted(given, tmp_path, capsys):
    rows = [
        {"prompt": f"  {word.upper()} ", "chosen": "yes", "rejected": "no"}
        for word in ("shared", "also  shared", "new")
    ]
    asked = tmp_path / "set.jsonl"
    asked.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trained = tmp_path / "train.jsonl"
    rows = [
        {"prompt": p, "chosen": "a", "rejected": "b"} for p in ("Shared", "also shared", "other")
    ]
    trained.write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows.append({"prompt": "a long one", "chosen": "a" * 100, "rejected": "b"})
    asked.write_text(asked.read_text() + json.dumps(rows[-1]) + "\n")
    given["sets"] = {"set": {"path": str(asked), "max_characters": 80}}
    given["base"]["data"]["train"]["path"] = str(trained)
    quarantine = Quarantine()
    found = study._say_what_can_be_seen(StudyJob(**given), cells(given, tmp_path), quarantine)
    assert found["set"]["in_training_files"] == 2 and found["set"]["contests"] == 3
    assert quarantine.counts() == {"max_characters": 1}
    assert "warning: set: the prompts of 2 of 3 contests" in capsys.readouterr().out


def test_a_cell_s_scores_are_of_one_making(given, tmp_path):
    """A cell that was stopped between its scores and its result is made again in full."""
    config, cell = StudyJob(**given), cells(given, tmp_path)[0]
    run = tmp_path / "cells" / cell.key
    judged = run / "judged"
    scoring.write(of_seed(cell), judged / "scores" / "model" / f"pairs-{'a' * 16}.parquet")
    evaluation = {"results": {"pairs": {"model": {"accuracy": {"mean": 0.5}}}}}
    (judged / "evaluation.json").write_text(json.dumps(evaluation))
    (run / "done.json").write_text("{}")
    (run / "metrics.jsonl").write_text('{"step": 1}\n')
    kept = tmp_path / "cells" / f"{cell.key}.scores"
    scoring.write(table([1]), kept / f"pairs-{'b' * 16}.parquet")
    study._make(cell, config, tmp_path)
    assert [file.name for file in kept.iterdir()] == [f"pairs-{'a' * 16}.parquet"]
    assert not run.exists()
    result = json.loads((tmp_path / "cells" / f"{cell.key}.json").read_text())
    assert set(result) == {"cell", "config", "last_metrics", "evaluation", "seconds"}

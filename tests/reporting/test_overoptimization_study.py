"""The page of an over-optimisation study, of what is finished and of what is not yet."""

import copy
import json

import pytest

from grm_ray import report
from grm_ray.reporting.overoptimization_study import (
    RESULT,
    choice_table,
    html,
    policy_table,
    verdict,
    write_overoptimization,
)
from grm_ray.study.best_of_n import kl_of_best_of_n

SIZES = [1, 2, 4, 8]


def around(mean, width=0.05):
    return {"mean": mean, "low": mean - width, "high": mean + width}


def chosen(*true, versus=None, note=""):
    return {
        "seeds": 3,
        "prompts": 24,
        "true": [around(value) for value in true],
        "own_gain": [0.0, 0.5, 0.8, 1.0],
        "kept": {**around(0.9), "note": note},
        "peak": SIZES[max(range(4), key=lambda i: true[i])],
        "gain": around(true[-1] - true[0]),
        "versus": versus,
    }


def policy(*true, versus=None):
    return {
        "seeds": [0, 1],
        "runs": ["a", "b"],
        "steps": [0, 4, 8],
        "d": [0.0, 1.0, 2.0],
        "reward": [0.0, 0.4, 0.9],
        "prompts": 40,
        "true": [around(value) for value in true],
        "kept": {"mean": None, "low": None, "high": None, "note": "no gain"},
        "peak": max(range(3), key=lambda i: true[i]),
        "gain": around(true[-1] - true[0]),
        "versus": versus,
    }


@pytest.fixture
def result():
    proxies = {
        "bt": chosen(0.5, 0.6, 0.65, 0.62),
        "wco": chosen(0.5, 0.6, 0.66, 0.7, versus=around(0.08)),
    }
    return {
        "name": "study",
        "baseline": "bt",
        "true_reward": "demo_judge",
        "seeds": [0, 1, 2],
        "flips": {"noisy": 0.25, "clean": 0.0},
        "flip_seed": 0,
        "proxies": {
            "bt": {"model": "bt"},
            "wco": {"ensemble_of": "bt", "aggregate": {"name": "wco"}},
            "grm": {"model": "grm"},
        },
        "models": {"noisy": {"bt": {"each": [0.7, 0.8], "mean": 0.75}}, "clean": {}},
        "noise": {
            "noisy": {
                "best_of_n": {
                    "sizes": SIZES,
                    "kl": [kl_of_best_of_n(n) for n in SIZES],
                    "oracle": [0.5, 0.7, 0.8, 0.9],
                    "proxies": proxies,
                },
                "ppo": {"bt": policy(0.5, 0.7, 0.6), "grm": policy(0.5, 0.6, 0.58)},
            },
            "clean": {"best_of_n": None, "ppo": None},
        },
    }


def test_the_verdict_names_who_ends_highest_beside_the_baseline(result):
    assert verdict(result, "noisy") == (
        "Best of 8: wco ends highest in true reward, at 0.700; bt at 0.620 (difference 0.080, "
        "interval 0.030–0.130). PPO: bt ends highest in true reward, at 0.600."
    )


def test_tables_have_what_is_finished(result):
    table = choice_table(result, "noisy")
    assert [row[0] for row in table.rows] == ["bt", "wco", "the true reward itself"]
    assert table.rows[0][1] == "75.0" and table.rows[0][4] == "4" and table.rows[1][4] == "8"
    assert table.rows[1][6].text == "+0.080" and table.rows[2][3] == "0.900"
    table = policy_table(result, "noisy")
    assert [row[0] for row in table.rows] == ["bt", "grm"]
    assert table.rows[0][3] == "step 4" and "bt, grm: no gain." in table.note
    assert choice_table(result, "clean") is policy_table(result, "clean") is None


def test_the_page_bears_missing_parts_and_odd_names(result, tmp_path):
    page = write_overoptimization(result, tmp_path).read_text()
    assert "No proxy has been optimised against yet." in page and "(the same for all)" in page
    assert page.count("<svg") > 5 and "PPO: true reward over distance" in page
    odd = copy.deepcopy(result)
    odd["proxies"]["bt"] = {"model": "<script>alert(1)</script>"}
    odd["flip_seed"] = None
    odd["noise"]["noisy"]["best_of_n"] = None
    for proxy in odd["noise"]["noisy"]["ppo"].values():
        proxy |= {"true": None, "kept": None, "versus": None, "d": [0.0, None, None]}
    page = html(odd)
    assert "<script>" not in page and "averages them out" in page


def test_the_page_of_a_study_is_drawn_again_from_its_figures(result, tmp_path, capsys):
    page = write_overoptimization(result, tmp_path)
    (tmp_path / "config.yaml").write_text("job: overoptimization\n")
    (tmp_path / RESULT).write_text(json.dumps(result))
    drawn = page.read_text()
    page.unlink()
    assert report.main([str(tmp_path)]) == 0
    assert capsys.readouterr().out.strip() == str(page) and page.read_text() == drawn

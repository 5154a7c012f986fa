"""`evaluate`, `run_study` and `curate` on the real stack: pools of scorers, jobs within jobs."""

import json
import signal
import time

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml

from grm_ray import export
from grm_ray.config.schema import PairSource, Source
from grm_ray.data.sources import Quarantine, iterate, pairs
from grm_ray.models.backbone import load_tokenizer
from grm_ray.models.checkpoint import load_reward_model
from grm_ray.models.scoring import score_rows
from tests.conftest import finish, job, rows
from tests.end_to_end.conftest import judge_config, rm_config


def run(module, path, folder, *flags):
    process = job(f"grm_ray.{module}", "--config", str(path), *flags, cwd=folder)
    output = finish(process)
    assert process.returncode == 0, output
    return output


def in_this_process(folder, path):
    """Scores of a file's answers, chosen and rejected in turn, without Ray."""
    model, contract, _ = load_reward_model(str(folder), "float32")
    tokenizer = load_tokenizer(str(folder))
    conversations = []
    for row in rows(path):
        asked = row["prompt"]
        question = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
        answers = [row["chosen"], row["rejected"]]
        prompt, answers = contract.tokens(tokenizer, question, answers)
        conversations += [(np.array(prompt), np.array(answer)) for answer in answers]
    return score_rows(model, conversations, budget=512)


@pytest.mark.timeout(900)
def test_a_saved_model_and_its_export_are_judged_alike(tmp_path, tiny_data, reward_model):
    folder = reward_model[0]
    assert export.main([str(folder / "model"), str(tmp_path / "plain")]) == 0
    models = {"ours": folder / "model", "plain": tmp_path / "plain"}
    ensembles = {"both": {"members": ["ours", "plain"], "aggregate": "min"}}
    path = judge_config(tmp_path, models, {"pairs": tiny_data["pairs"]}, ensembles=ensembles)
    run("evaluate", path, tmp_path)
    judged = tmp_path / "runs" / "judged"
    found = json.loads((judged / "evaluation.json").read_text())["results"]["pairs"]
    accuracies = {name: model["accuracy"]["mean"] for name, model in found.items()}
    assert len(set(accuracies.values())) == 1 and accuracies["ours"] > 0.5, accuracies
    scores = [
        pq.read_table(next((judged / "scores" / name).glob("*.parquet")))["score"].to_numpy()
        for name in models
    ]
    assert abs(scores[0] - scores[1]).max() < 1e-4 * scores[0].std()
    assert abs(scores[0] - in_this_process(folder / "model", tiny_data["pairs"])).max() < 1e-5
    for name in ("evaluation.md", "evaluation.svg", "report.html", "quarantine.jsonl"):
        assert (judged / name).stat().st_size or name == "quarantine.jsonl"
    # What is scored stays scored.
    again = run("evaluate", path, tmp_path, "--resume")
    assert "loading" not in again


def interrupted(path, folder):
    """A study that Ctrl-C ends while it trains its first cell; no process may stay."""
    process = job("grm_ray.run_study", "--config", str(path), cwd=path.parent)
    while not any(folder.glob("cells/*/metrics.jsonl")):
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 1 and "start it again: it continues where it stopped" in output
    assert len(list((folder / "cells").glob("*.yaml"))) == 1
    assert not list((folder / "cells").glob("*.json"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_study_computes_each_cell_once(tmp_path, tiny_model, tiny_data):
    base = yaml.safe_load(rm_config(tmp_path, tiny_model, tiny_data).read_text())
    base = {key: value for key, value in base.items() if key not in ("name", "runs", "tracking")}
    study = {
        "name": "study",
        "runs": str(tmp_path / "runs"),
        "base": base,
        "vary": {
            "seed": {"s0": {"seed": 0}, "s1": {"seed": 1}},
            "method": {"bt": {"loss.alpha": 0.0}, "grm": {"loss.alpha": 0.01}},
        },
        "repeat": "seed",
        "ensembles": ["min"],
        "baseline": "bt",
        "sets": {"pairs": {"path": str(tiny_data["pairs"])}},
        "scoring": {"dtype": "float32"},
    }
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    folder = tmp_path / "runs" / "study"
    interrupted(path, folder)
    output = run("run_study", path, tmp_path)
    assert output.count("begins") == 4
    # The prompts are the training's own, and the study says so.
    assert "warning: pairs: the prompts of 48 of 48 contests" in output
    found = json.loads((folder / "study.json").read_text())
    results = found["results"]["pairs"]
    assert set(results) == {"bt", "bt/min", "grm", "grm/min"}
    cells = [json.loads(cell.read_text()) for cell in (folder / "cells").glob("*.json")]
    assert len(cells) == 4
    alone = {(c["cell"]["seed"], c["cell"]["method"]): c["evaluation"] for c in cells}
    for method in ("bt", "grm"):
        each = [
            alone[seed, method]["results"]["pairs"]["model"]["accuracy"]["mean"]
            for seed in ("s0", "s1")
        ]
        assert results[method]["accuracy"]["each"] == pytest.approx(each)
        assert results[method]["accuracy"]["mean"] == pytest.approx(np.mean(each))
        assert results[method]["accuracy"]["contests"] == 48
    versus = results["grm"]["versus"]
    assert versus["baseline"] == "bt"
    assert versus["difference"]["mean"] == pytest.approx(
        results["grm"]["accuracy"]["mean"] - results["bt"]["accuracy"]["mean"]
    )
    assert results["bt/min"]["accuracy"]["mean"] > 0.5
    text = (folder / "evaluation.md").read_text()
    assert "Figures are means over 2 trainings (seed: s0, s1)" in text
    # Only results and what was said are left, nothing of the interrupted start either.
    kinds = {file.suffix for file in (folder / "cells").glob("[!.]*")}
    assert kinds == {".json", ".yaml", ".log", ".scores"}
    study["vary"]["method"]["smooth"] = {"loss.alpha": 0.0, "loss.label_smoothing": 0.1}
    study["vary"]["seed"] = {"s0": {"seed": 0}}
    path.write_text(yaml.safe_dump(study | {"ensembles": []}))
    output = run("run_study", path, tmp_path)
    assert output.count("begins") == 1 and output.count("has its result") == 2


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_curation_flips_what_voters_are_against(tmp_path, tiny_model, tiny_data):
    base = yaml.safe_load(rm_config(tmp_path, tiny_model, tiny_data).read_text())
    base = {key: value for key, value in base.items() if key in ("model", "training")}
    base["data"] = {"max_length": 128, "holdout": 0.1}
    config = {
        "name": "curated",
        "runs": str(tmp_path / "runs"),
        "data": {"path": str(tiny_data["pairs"]), "flip": 0.2},
        "base": base,
        "folds": 2,
        "policy": "flip",
        "weakest": 0.3,
        "scoring": {"dtype": "float32"},
    }
    path = tmp_path / "curate.yaml"
    path.write_text(yaml.safe_dump(config))
    run("curate", path, tmp_path)
    table = tmp_path / "runs" / "curated" / "curated.parquet"
    found = pq.read_table(table).to_pylist()
    given = pairs(PairSource(**config["data"]), Quarantine())  # noise included
    assert len(found) == len(given) == 48
    flips = 0
    for row, pair in zip(found, given, strict=True):
        answers = (pair.chosen, pair.rejected)
        flipped = row["action"] == "flip"
        flips += flipped
        assert (row["chosen"], row["rejected"]) == (answers[::-1] if flipped else answers)
        assert row["prompt"][-1]["content"] == pair.prompt[-1][1]
        assert row["strength_mean"] < 0 or not flipped
    assert flips > 0
    # Votes are on the pairs that they stand beside, by the voter that had not seen them.
    strengths = {row["prompt"][-1]["content"]: row["strength_mean"] for row in found}
    for voter in (tmp_path / "runs" / "curated" / "voters").glob("fold-*/"):
        votes = tmp_path / "runs" / "curated" / "folds" / f"{voter.name[5]}-votes.jsonl"
        scores = in_this_process(voter / "model", votes)
        margins = scores[0::2] - scores[1::2]
        beside = [strengths[row["prompt"][-1]["content"]] for row in rows(votes)]
        assert np.allclose(margins / np.median(abs(margins)), beside, atol=1e-3)
    read = list(iterate(Source(path=str(table)), Quarantine()))
    assert len(read) == len(given)
    # All votes are there: nothing is trained again.
    began = (tmp_path / "runs" / "curated" / "voters").stat().st_mtime_ns
    run("curate", path, tmp_path)
    assert pq.read_table(table).to_pylist() == found
    assert (tmp_path / "runs" / "curated" / "voters").stat().st_mtime_ns == began

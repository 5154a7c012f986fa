"""`python -m grm_ray.bon` on the real stack: killed, gone on with, workers killed as well."""

import json
import os
import signal

import psutil
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer

from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.runtime import timeline
from grm_ray.runtime.ledger import uid
from tests.conftest import descendants, finish, job
from tests.end_to_end.conftest import bon_config
from tests.end_to_end.test_ppo_job import wait_for
from tests.models.scoring import reward_model

PROMPTS, SAMPLES, PER_SHARD = 48, 4, 4


@pytest.fixture
def proxies(tmp_path, tiny_model):
    """Two reward models, which differ in the size of a random head and in its sign."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    contract = ScoringContract.of(tokenizer, 128, "left")
    for name, factor in (("one", 1.0), ("two", -0.5)):
        model = reward_model(tiny_model, Head())
        with torch.no_grad():
            for weight in model.head.parameters():
                weight *= factor
        save_reward_model(model, Head(), tokenizer, contract, tmp_path / name, "")
    return {name: tmp_path / name for name in ("one", "two")}


def start(path, folder, *flags):
    return job("grm_ray.bon", "--config", str(path), *flags, cwd=folder)


def shards(run):
    return sorted((run / "samples").glob("shard-*.parquet"))


def contents(files):
    return {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in files}


def times_scored(run):
    """First uid of every batch that a scorer was given, in all starts together."""
    return [e["args"]["key"] for e in timeline.read(run / "logs") if e["name"] == "score"]


def flat(found):
    """Every number by its place; paths and notes left out."""
    if isinstance(found, dict):
        return {f"{k}.{p}": v for k, x in found.items() for p, v in flat(x).items()}
    if isinstance(found, list):
        return {f"{i}.{p}": v for i, x in enumerate(found) for p, v in flat(x).items()}
    return {"": found} if isinstance(found, float) else {}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_job_goes_on_without_making_an_answer_twice(
    tmp_path, tiny_model, tiny_data, proxies
):
    path = bon_config(tmp_path, tiny_model, tiny_data, proxies)
    run = tmp_path / "runs" / "bon"
    process = start(path, tmp_path)
    wait_for(lambda: len(shards(run)) >= 2, process)
    workers = descendants(process, "ray::Scorer", "ray::RolloutWorker")
    process.kill()
    process.communicate()
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert not alive, [p.cmdline() for p in alive]
    before = contents(shards(run))
    assert 2 <= len(before) < PROMPTS // PER_SHARD

    other = finish(start(path, tmp_path, "--resume", "rollout.temperature=0.5"))
    assert "rollout.temperature: 1.0 in the checkpoint, 0.5 now" in other

    process = start(path, tmp_path, "--resume")
    wait_for(lambda: len(shards(run)) > len(before), process)
    for worker in ("ray::Scorer", "ray::RolloutWorker"):
        os.kill(descendants(process, worker)[0].pid, signal.SIGKILL)
    output = finish(process)
    assert process.returncode == 0, output
    assert f"{len(before)} shards are already finished" in output
    assert "scorer 0 died and is being replaced" in output or "scorer 1 died" in output
    assert "rollout 0 died and is being replaced" in output
    assert contents(before) == before
    tables = [pq.read_table(file) for file in shards(run)]
    uids = [name for table in tables for name in table["uid"].to_pylist()]
    assert len(uids) == len(set(uids)) == PROMPTS * SAMPLES
    # What stood in a file when the job was killed was scored once and never again.
    scored = times_scored(run)
    for file in before:
        for prompt in set(pq.read_table(file)["prompt_id"].to_pylist()):
            assert scored.count(uid(prompt, 0, 0)) == 1
    for name in ("best_of_n.json", "report.html", "config.yaml", "timeline.json"):
        assert (run / name).stat().st_size
    check_against_an_unbroken_run(run, tmp_path, path)


def check_against_an_unbroken_run(run, tmp_path, path):
    output = finish(start(path, tmp_path, "name=unbroken"))
    assert "report: " in output
    unbroken = tmp_path / "runs" / "unbroken"
    for file, other in zip(shards(run), shards(unbroken), strict=True):
        mine, its = pq.read_table(file), pq.read_table(other)
        for name in ("uid", "prompt", "response", "tokens", "true_reward"):
            assert mine[name] == its[name], name
    mine, its = (json.loads((r / "best_of_n.json").read_text()) for r in (run, unbroken))
    assert flat(mine["proxies"]) == pytest.approx(flat(its["proxies"]), rel=1e-4, abs=1e-4)
    # Other betas are figures of the same answers: nobody is asked again.
    again = finish(start(path, tmp_path, "--resume", "name=unbroken", "betas=[1.0]"))
    assert "starting workers" not in again
    found = json.loads((unbroken / "best_of_n.json").read_text())["proxies"]["one"]
    assert [soft["beta"] for soft in found["soft"]] == [1.0]

"""Several reward models, stages between them and the policy, and the watch over both."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from grm_ray.config.errors import ConfigError
from grm_ray.config.load import load
from grm_ray.config.ppo import PpoJob
from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.drivers.checks.readable import rehearse
from grm_ray.models.backbone import load_causal_lm, load_tokenizer
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.models.reward_model import RewardModel
from tests.conftest import build_model, finish, job, rows
from tests.end_to_end.conftest import ppo_config


def fresh_reward_model(base, folder, seed):
    """A reward model with a random head on `base`."""
    tokenizer = load_tokenizer(str(base))
    torch.manual_seed(seed)
    model = RewardModel(load_causal_lm(Model(path=str(base), dtype="float32")), Head())
    torch.nn.init.normal_(model.head.layers[-1].weight)
    contract = ScoringContract.of(tokenizer, 128, "left")
    save_reward_model(model, Head(), tokenizer, contract, folder, "# random head\n")
    return str(folder)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_members_stages_and_the_watch(tmp_path, tiny_model, tiny_data):
    members = {n: fresh_reward_model(tiny_model, tmp_path / n, i) for i, n in enumerate("ab")}
    canaries = tmp_path / "canaries.jsonl"
    asked = [{"prompt": f"say {i}", "matches": "e" if i % 2 else "^$"} for i in range(4)]
    canaries.write_text("".join(json.dumps(row) + "\n" for row in asked))
    changes = {
        "reward": {
            "members": members,
            "aggregate": "wco",
            "references": 2,
            "stages": [
                {"stage": "rule", "rule": {"name": "repetition", "n": 1}, "weight": -1.0},
                "par",
                {"stage": "missing_eos", "penalty": 0.5},
            ],
            "true_reward": "tests.judges:shorter",
        },
        "ppo": {"steps": 3, "estimator": "rloo", "optimizer": {"learning_rate": 1.0e-3}},
        "evaluation": {
            "prompts": 6,
            "every": 1,
            "kl": True,
            "canaries": {"path": str(canaries)},
        },
        "guard": {"by": "disagreement", "patience": 1, "action": "lower"},
        "checkpoint": {"every": 2},
    }
    path = ppo_config(tmp_path, tiny_model, tiny_data, "", **changes)
    output = finish(process := job("grm_ray.ppo", "--config", str(path), cwd=tmp_path))
    assert process.returncode == 0, output
    run = tmp_path / "runs" / "ppo"
    before, *steps = rows(run / "metrics.jsonl")
    assert abs(before["eval/kl"]) < 1e-4 < abs(steps[-1]["eval/kl"])
    right = pq.read_table(run / "samples" / "after-canaries.parquet").to_pylist()
    assert len(right) == 4 and steps[-1]["eval/canary"] == sum(row["right"] for row in right) / 4
    for row in right:
        wanted = "e" in row["response"] if int(row["prompt"][-1]) % 2 else row["response"] == ""
        assert row["right"] == wanted
    for metrics in steps:
        assert metrics["reward/disagreement"] > 0 and 0 <= metrics["reward/starc"] <= 1
        assert {"eval/list_rate", "eval/repetition", "eval/disagreement"} <= set(metrics)
        said = pq.read_table(run / "samples" / f"step-{metrics['step']:05d}.parquet").to_pylist()
        assert len(said) == 15
        assert sum(row["reward"] for row in said) / 15 == pytest.approx(metrics["reward"], abs=1e-5)
        for row in said:
            assert row["1 rule"] <= row["reward"] and 0 < row["2 par"] < 1
            assert row["2 par"] - row["3 missing_eos"] in (pytest.approx(0), pytest.approx(0.5))
            assert row["member/a"] != row["member/b"]
    (references,) = (tmp_path / "runs" / ".references").glob("*.parquet")
    table = pq.read_table(references)
    assert table.num_rows == 2 * 15 and len(table["scores"][0].as_py()) == 2
    made_at = references.stat().st_mtime_ns

    # An alarm is told in the table, and raises the penalty from the next step on.
    factor = 1.0
    for earlier, now in zip([before, *steps], steps, strict=False):
        assert now["objective/kl_coefficient"] == pytest.approx(0.05 * factor)
        if "guard/action" in now:
            assert now["eval/disagreement"] > earlier["eval/disagreement"]
            assert f"step {now['step']}: guard: over 1 evaluations" in output
            factor *= 2.0

    # The same answers compared with once more: none of them is written twice.
    argv = ("--config", str(path), "--resume", "ppo.steps=3")
    finish(process := job("grm_ray.ppo", *argv, cwd=tmp_path))
    assert process.returncode == 0
    again = rows(run / "metrics.jsonl")
    assert references.stat().st_mtime_ns == made_at
    third = {k: v for k, v in again[-1].items() if k.startswith(("eval/", "reward"))}
    assert third == pytest.approx({k: v for k, v in steps[-1].items() if k in third}, abs=1e-4)
    assert json.loads((run / "ledger.jsonl").read_text().splitlines()[-1])["step"] == 3


def test_a_template_that_refuses_the_prompts_is_named_before_any_worker_starts(
    tmp_path, tiny_model, tiny_data
):
    base = build_model(tmp_path / "base", seed=1)
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system turn') }}{% endif %}"
        + tokenizer.chat_template.replace("start", "begin")
    )
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|begin|>"]})
    tokenizer.save_pretrained(base)
    refusing = fresh_reward_model(base, tmp_path / "refusing", 0)
    prompts = tmp_path / "prompts.jsonl"
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "the cat"}]
    lines = [{"prompt": [*turns[:1], {"role": "user", "content": f"cat {i}"}]} for i in range(9)]
    prompts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = ppo_config(
        tmp_path, tiny_model, {**tiny_data, "prompts": prompts}, refusing, evaluation={"prompts": 2}
    )
    output = finish(process := job("grm_ray.ppo", "--config", str(path), cwd=tmp_path))
    assert process.returncode == 2, output
    assert "reward.path: the chat template of" in output and "system, user" in output
    assert "no system turn" in output and "Traceback" not in output
    with pytest.raises(ConfigError, match="refuses a conversation of system, user"):
        rehearse(load(PpoJob, path))  # as --dry-run does

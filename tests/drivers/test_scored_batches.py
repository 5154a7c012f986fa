"""Answers that scorers die of, on a real pool: only they are refused."""

import math
import os
import time

import pyarrow as pa
import pytest
import ray
from transformers import AutoTokenizer

from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.data.tables import SCORES
from grm_ray.drivers.scored_batches import ScoredBatch, again
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.runtime.pool import Pool
from grm_ray.workers.scorer import Scorer
from tests.models.scoring import reward_model


@ray.remote(num_cpus=0)
class Reader:
    """Scores an answer by its length; dies of one, and never ends with another."""

    def start(self):
        return []

    def score(self, batch, row=None):
        said = batch["response"].to_pylist()
        said = said if row is None else said[row : row + 1]
        if "poison" in said:
            os._exit(1)
        if "endless" in said:
            time.sleep(600)
        return [float(len(text)) for text in said]

    def refuse(self, batch, row):
        return [float("nan")]


def spawn(slot):
    handle = Reader.remote()
    return handle, handle.start.remote()


@pytest.mark.parametrize("deadly", ["poison", "endless"])
def test_an_answer_that_scorers_die_of_is_refused_alone(small_cluster, deadly):
    pool = Pool("scorer", spawn, count=2, dead_s=2)
    pool.wait_ready(60)
    found = {}
    batches = {
        "first": ["a", "bb"],
        "second": ["ccc", deadly, "dddd"],
        "third": ["e"],
        "alone": [deadly],
    }
    for owner, said in batches.items():
        ScoredBatch(owner, ray.put(pa.table({"response": said})), len(said)).submit(pool)
        found[owner] = []
    while sum(map(len, found.values())) < 7:
        ready, _ = ray.wait(pool.waitables(), timeout=1.0)
        events = [event for ref in ready for event in pool.handle(ref)]
        for event in [*events, *pool.look_after()]:
            if event.kind == "lost":
                again(event, pool)
            else:
                assert event.kind == "result"
                found[event.work.payload.owner] += event.value
    assert sorted(found["first"]) == [1, 2] and found["third"] == [1]
    assert sorted(x for x in found["second"] if not math.isnan(x)) == [3, 4]
    assert len(found["second"]) == 3 and math.isnan(found["alone"][0])
    assert pool.idle
    for handle in pool.handles:
        ray.kill(handle)


def test_a_refused_answer_has_a_row_like_any_other(tmp_path, tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    contract = ScoringContract.of(tokenizer, 64, "left")
    head = Head(members=3)
    for name in ("one", "two"):
        model = reward_model(tiny_model, head if name == "two" else Head())
        save_reward_model(
            model, head if name == "two" else Head(), tokenizer, contract, tmp_path / name, ""
        )
    folders = [str(tmp_path / name) for name in ("one", "two")]
    rules = [{"name": "repetition", "n": 2}]
    scorer = Scorer.__ray_metadata__.modified_class(
        folders, "float32", None, None, 256, 1, str(tmp_path / "log"), rules_of=rules
    )
    scorer.start()
    asked = '[{"role": "user", "content": "the cat sat"}]'
    batch = pa.table(
        {
            "uid": ["a", "b"],
            "prompt": [asked] * 2,
            "messages": [asked] * 2,
            "response": ["on a mat", "on birds"],
        }
    )
    scored, refused = scorer.score(batch, 1), scorer.refuse(batch, 1)
    assert scored.schema == refused.schema == SCORES
    assert scored["uid"] == refused["uid"] == pa.chunked_array([["b"]])
    both = scorer.score(batch)["scores"].to_pylist()
    assert scored["scores"][0].as_py() == pytest.approx(both[1], rel=1e-5)
    for name, width in (("scores", 4), ("rules", 1)):
        assert len(scored[name][0]) == width
        assert [math.isnan(x) for x in refused[name][0].as_py()] == [True] * width
    assert refused["refused"].to_pylist() == ["scorers died of it"]

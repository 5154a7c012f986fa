"""Answers that scorers die of, on a real pool: only they are refused."""

import math
import os
import time
from types import SimpleNamespace

import pyarrow as pa
import pytest
import ray
from ray.exceptions import RayActorError
from transformers import AutoTokenizer

from benchmarks.parts.simulated_transport import Ref, SimulatedTransport
from grm_ray.config.schema import Head
from grm_ray.data.chat import ScoringContract
from grm_ray.data.tables import SCORES
from grm_ray.drivers.scored_batches import ScoredBatch, again
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.runtime.pool import Pool, PoolFailed
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


def until_scored(pool, batches, put=ray.put):
    """owner -> scores of its batch, NaN where it was refused."""
    found = {owner: [] for owner in range(len(batches))}
    for owner, said in enumerate(batches):
        ScoredBatch(owner, put(pa.table({"response": said})), len(said)).submit(pool)
    while sum(map(len, found.values())) < sum(map(len, batches)):
        events = [event for ref in pool.wait(1.0) for event in pool.handle(ref)]
        for event in [*events, *pool.look_after()]:
            if event.kind == "lost":
                again(event, pool)
            else:
                assert event.kind == "result"
                found[event.work.payload.owner] += event.value
    assert pool.idle
    return list(found.values())


def refused(scores):
    return sum(math.isnan(x) for x in scores)


@pytest.mark.parametrize("deadly", ["poison", "endless"])
def test_an_answer_that_scorers_die_of_is_refused_alone(small_cluster, deadly):
    pool = Pool("scorer", spawn, count=2, dead_s=2)
    pool.wait_ready(60)
    batches = [["a", "bb"], ["ccc", deadly, "dddd"], ["e"]]
    found = until_scored(pool, batches)
    assert sorted(found[0]) == [1, 2] and found[2] == [1]
    assert sorted(x for x in found[1] if not math.isnan(x)) == [3, 4]
    assert len(found[1]) == 3
    for handle in pool.handles:
        ray.kill(handle)


class Scorers:
    """Scorers on a simulated clock: each call takes a second, and one that sees an x is dead."""

    def __init__(self):
        self.transport = SimulatedTransport()

    def spawn(self, slot):
        worker = SimpleNamespace(alive=True)
        worker.score = SimpleNamespace(remote=lambda *asked: self.score(worker, *asked))
        worker.refuse = SimpleNamespace(remote=lambda *_: self.give(worker, [float("nan")]))
        return worker, self.give(worker, None)

    def score(self, worker, batch, row=None):
        said = batch["response"].to_pylist()
        said = said if row is None else said[row : row + 1]
        worker.alive = worker.alive and "x" not in said
        return self.give(worker, [float(len(text)) for text in said])

    def give(self, worker, value):
        error = None if worker.alive else RayActorError()
        return self.transport.schedule(Ref(self.transport.now() + 1.0, value, error))


def on_paper(count):
    scorers = Scorers()
    pool = Pool("scorer", scorers.spawn, count, transport=scorers.transport)
    pool.wait_ready(10)
    return pool


@pytest.mark.parametrize("count", [2, 5])
@pytest.mark.parametrize(
    "batches", ["x", "xax", "xxx", "xaxa", "xxxx", "xa xa", "xaaa xaaa aaaa", "aa xa xa", "x x x x"]
)
def test_deadly_answers_are_refused_however_near_they_are_to_each_other(count, batches):
    pool = on_paper(count)
    asked = [list(batch) for batch in batches.split()]
    found = until_scored(pool, asked, lambda table: table)
    assert [refused(scores) for scores in found] == [batch.count("x") for batch in asked]
    assert [len(scores) for scores in found] == [len(batch) for batch in asked]


@pytest.mark.parametrize(("count", "dead"), [(2, 2), (4, 2), (16, 8), (16, 16)])
def test_scorers_that_died_while_they_were_idle_are_no_fault_of_the_next_answer(count, dead):
    pool = on_paper(count)
    for handle in pool.handles[:dead]:
        handle.alive = False
    assert until_scored(pool, [["a"], ["a", "a"]], lambda table: table) == [[1.0], [1.0, 1.0]]


def test_scorers_that_die_of_everything_end_the_run():
    pool = on_paper(2)
    with pytest.raises(PoolFailed, match="in a row"):
        until_scored(pool, [["x"] * 4] * 20, lambda table: table)


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
    assert refused["refused"].to_pylist() == ["scorers died on it"]

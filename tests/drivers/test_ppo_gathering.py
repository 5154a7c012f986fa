"""All that a step knows of a row is of one text, whoever wrote it."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from grm_ray.data.tables import SCORES
from grm_ray.drivers.groups import InputLost, RankDied
from grm_ray.drivers.ppo.step import Gathering, Writing
from grm_ray.runtime.pool import Event
from grm_ray.runtime.weights import Version

ROWS = [(0, "p:0:0"), (1, "q:0:0"), (2, "r:0:0")]
UIDS = [uid for _, uid in ROWS]


class Pool:
    def __init__(self):
        self.submitted, self.handles, self.retried = [], [object()], 0

    def submit(self, work):
        self.submitted.append(work)

    def now(self):
        return 0.0


class Batch:
    """In place of a reference to a batch."""

    def __init__(self, texts):
        self.texts = texts


@pytest.fixture
def cast():
    return SimpleNamespace(
        timeline=SimpleNamespace(mark=lambda *_, **__: None),
        scorers=Pool(),
        rollouts=Pool(),
        evaluates_together=False,
        say=lambda message: None,
    )


@pytest.fixture
def gathering(cast):
    made = Gathering(cast, None, ROWS, Version(0, 0), 0, evaluate=False)
    made.begin()
    return made


def item(gathering, texts):
    """A batch of uid -> answer, as a rollout worker streams it."""
    metadata = {
        "uids": list(texts),
        "lengths": [len(text) for text in texts.values()],
        "tokens": [9] * len(texts),
        "finished": [True] * len(texts),
        "versions": [(0, 0)] * len(texts),
    }
    batch = Batch(texts)
    return Event("item", SimpleNamespace(payload=Writing(gathering, UIDS)), (batch, metadata))


def test_a_batch_of_which_a_row_is_there_already_is_passed_over_and_made_up_for(cast, gathering):
    gathering.on_generated(item(gathering, {"p:0:0": "one", "q:0:0": "two"}))
    gathering.on_generated(item(gathering, {"q:0:0": "another", "r:0:0": "three"}))
    assert [list(b.texts.values()) for b in gathering.step.rollouts] == [["one", "two"]]
    assert gathering.step.rows["q:0:0"]["length"] == 3 and not gathering.generated
    assert len(cast.scorers.submitted) == 1
    gathering.on_generated(Event("end", cast.rollouts.submitted[0]))
    assert cast.rollouts.submitted[-1].payload.uids == ["r:0:0"]
    gathering.on_generated(item(gathering, {"r:0:0": "four"}))
    assert gathering.generated
    gathering.on_generated(Event("end", cast.rollouts.submitted[1]))
    assert len(cast.rollouts.submitted) == 2


def test_texts_that_went_with_a_machine_are_a_reason_to_recover(gathering, monkeypatch):
    import ray

    def gone(refs):
        raise ray.exceptions.ObjectLostError("00" * 28, None, "")

    monkeypatch.setattr(ray, "get", gone)
    with pytest.raises(RankDied, match="lost with the machine"):
        gathering.step.texts()


def scores(batch):
    """What a scorer says of a batch."""
    one = {"scores": [1.0], "rules": [], "true_reward": None, "fingerprint": "f", "refused": None}
    return pa.Table.from_pylist([{"uid": name, **one} for name in batch.texts], SCORES)


def test_rows_that_went_with_a_machine_are_made_again_and_what_is_late_of_them_does_not_count(
    cast, gathering
):
    first = item(gathering, {"p:0:0": "one", "q:0:0": "two"})
    for event in (first, item(gathering, {"r:0:0": "three"})):
        gathering.on_generated(event)
    works = list(cast.scorers.submitted)
    assert gathering.generated
    gathering.on_scored(Event("gone", works[0]))
    assert not gathering.generated and list(gathering.step.rows) == ["r:0:0"]
    assert cast.rollouts.submitted[-1].payload.uids == ["p:0:0", "q:0:0"]
    assert cast.rollouts.retried == 1
    gathering.on_generated(Event("lost", cast.rollouts.submitted[0]))  # on the same machine
    assert len(cast.rollouts.submitted) == 2
    gathering.on_scored(Event("result", works[0], scores(first.value[0])))  # a twin, too late
    gathering.on_scored(Event("gone", works[0]))
    assert gathering.scored == 0 and cast.rollouts.retried == 1
    again = item(gathering, {"p:0:0": "eleven", "q:0:0": "two"})
    gathering.on_generated(again)
    for work, batch in zip(cast.scorers.submitted[1:], list(gathering.step.rollouts), strict=True):
        gathering.on_scored(Event("result", work, scores(batch)))
    assert gathering.complete
    assert gathering.step.rows["p:0:0"]["length"] == 6
    assert gathering.step.at.keys() == {"generated", "scored"}


def test_rows_that_never_get_from_machine_to_machine_are_not_made_for_ever(cast, gathering):
    for _ in range(2):
        gathering.on_generated(item(gathering, {"p:0:0": "one"}))
        gathering.on_scored(Event("gone", cast.scorers.submitted[-1]))
    gathering.on_generated(item(gathering, {"p:0:0": "one"}))
    with pytest.raises(RankDied, match="lost with the machine"):
        gathering.on_scored(Event("gone", cast.scorers.submitted[-1]))


def test_what_ranks_evaluate_together_is_not_made_again_in_part(cast):
    cast.evaluates_together = True
    gathering = Gathering(cast, None, ROWS, Version(0, 0), 0, evaluate=True)
    gathering.begin()
    gathering.on_generated(item(gathering, {"p:0:0": "one", "q:0:0": "two"}))
    with pytest.raises(RankDied, match="lost with the machine"):
        gathering.on_scored(Event("gone", cast.scorers.submitted[0]))


def test_an_evaluation_of_lost_rows_has_them_made_again(cast):
    def lost(refs):
        if refs == ["lost"]:
            raise InputLost("with a machine")
        return [{"uids": ["r:0:0"], "kl": [0], "penalty": [0], "entropy": [0], "gap": [0]}]

    cast.learners = SimpleNamespace(gather=lost)
    cast.evaluate = lambda batch, tokens: ("table", "lost" if len(batch.texts) > 1 else "there")
    gathering = Gathering(cast, None, ROWS, Version(0, 0), 0, evaluate=True)
    gathering.begin()
    gathering.release()
    gathering.on_generated(item(gathering, {"p:0:0": "one", "q:0:0": "two"}))
    gathering.on_generated(item(gathering, {"r:0:0": "three"}))
    gathering.on_evaluated("lost")
    gathering.on_evaluated("there")
    assert gathering.lacking() == {"evaluated": 2, "generated": 2, "scored": 3}
    assert list(gathering.step.evaluations.values()) == ["table"]

"""All that a step knows of a row is of one text, whoever wrote it."""

from types import SimpleNamespace

import pyarrow as pa
import pytest

from grm_ray.drivers.groups import RankDied
from grm_ray.drivers.ppo_step import Gathering, Writing
from grm_ray.runtime.pool import Event
from grm_ray.runtime.weights import Version

ROWS = [(0, "p:0:0"), (1, "q:0:0"), (2, "r:0:0")]
UIDS = [uid for _, uid in ROWS]


class Pool:
    def __init__(self):
        self.submitted, self.handles = [], [object()]

    def submit(self, work):
        self.submitted.append(work)


@pytest.fixture
def cast():
    return SimpleNamespace(
        timeline=SimpleNamespace(mark=lambda *_, **__: None),
        scorers=Pool(),
        rollouts=Pool(),
        evaluates_together=False,
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
    batch = pa.table({"uid": list(texts), "response": list(texts.values())})
    return Event("item", SimpleNamespace(payload=Writing(gathering, UIDS)), (batch, metadata))


def test_a_batch_of_which_a_row_is_there_already_is_passed_over_and_made_up_for(cast, gathering):
    gathering.on_generated(item(gathering, {"p:0:0": "one", "q:0:0": "two"}))
    gathering.on_generated(item(gathering, {"q:0:0": "another", "r:0:0": "three"}))
    assert [b["response"].to_pylist() for b in gathering.step.rollouts] == [["one", "two"]]
    assert gathering.step.rows["q:0:0"]["length"] == 3 and not gathering.generated
    assert len(cast.scorers.submitted) == 1
    gathering.on_generated(Event("end", SimpleNamespace(payload=Writing(gathering, UIDS))))
    assert cast.rollouts.submitted[-1].payload.uids == ["r:0:0"]
    gathering.on_generated(item(gathering, {"r:0:0": "four"}))
    assert gathering.generated
    gathering.on_generated(Event("end", SimpleNamespace(payload=Writing(gathering, UIDS))))
    assert len(cast.rollouts.submitted) == 2


def test_texts_that_went_with_a_machine_are_a_reason_to_recover(gathering, monkeypatch):
    import ray

    def gone(refs):
        raise ray.exceptions.ObjectLostError("00" * 28, None, "")

    monkeypatch.setattr(ray, "get", gone)
    with pytest.raises(RankDied, match="went with the machine"):
        gathering.step.texts()

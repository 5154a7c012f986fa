"""Requests over a pool of scorers that die, hang and refuse: only who is at fault is refused."""

import os
import time

import numpy as np
import pyarrow as pa
import pytest
import ray
from ray.exceptions import RayActorError

from grm_ray.data.tables import ASKED
from grm_ray.runtime.pool import Pool
from grm_ray.runtime.service import Busy, RequestRefused, ScoringService


@ray.remote(num_cpus=0)
class Reader:
    """Scores an answer by its length."""

    def start(self):
        return []

    def answer(self, asked):
        said = asked["response"].to_pylist()
        if "poison" in said:
            os._exit(1)
        if "sleep" in said:
            time.sleep(600)
        if "odd" in said:
            return None, "ValueError"
        return np.array([[float(len(text))] for text in said]), ""


def spawn(slot):
    handle = Reader.remote()
    return handle, handle.start.remote()


@pytest.fixture(params=[2])
def service(small_cluster, request):
    pool = Pool("scorer", spawn, count=request.param, dead_s=3)
    pool.wait_ready(60)
    made = ScoringService(pool, rows_per_batch=8, most_rows=100, most_bytes=10_000, timeout_s=60)
    made.start()
    yield made
    made.stop()
    for handle in pool.handles:
        ray.kill(handle)


def rows(*said):
    return pa.Table.from_pylist(
        [{"messages": None, "prompt": "", "response": text} for text in said], ASKED
    )


def scores(future):
    return future.result(60)[:, 0].tolist()


def test_requests_that_wait_together_get_their_own_scores(service):
    futures = [service.ask(rows("a" * i, "b" * (i + 1))) for i in range(20)]
    assert [scores(f) for f in futures] == [[float(i), i + 1.0] for i in range(20)]


def test_who_is_at_fault_is_refused_alone(service):
    futures = [service.ask(rows("fine")) for _ in range(4)]
    odd = service.ask(rows("odd", "fine"))
    futures += [service.ask(rows("fine")) for _ in range(4)]
    with pytest.raises(RequestRefused, match="ValueError"):
        odd.result(60)
    assert [scores(f) for f in futures] == [[4.0]] * 8


def test_rows_that_kill_scorers_do_not_end_the_service_however_often_they_come(service):
    for _ in range(3):
        futures = [service.ask(rows(f"fine {i}")) for i in range(6)]
        deadly = [service.ask(rows("poison")), service.ask(rows("poison", "too"))]
        futures += [service.ask(rows(f"fine {i}")) for i in range(6)]
        for one in deadly:
            with pytest.raises(RequestRefused, match="die on these rows|died on these rows"):
                one.result(60)
        assert [scores(f) for f in futures] == [[6.0]] * 12
    assert service.failed is None


def test_a_scorer_that_does_not_answer_counts_as_dead(service):
    asleep = service.ask(rows("sleep"))
    time.sleep(0.5)
    other = service.ask(rows("fine"))
    with pytest.raises(RequestRefused, match="die on these rows"):
        asleep.result(60)
    assert scores(other) == [4.0] and service.failed is None


def test_what_has_no_room_is_told_so_and_room_comes_back(service):
    with pytest.raises(Busy, match="0 rows are waiting, at most 100 are allowed"):
        service.ask(rows(*["x"] * 101))
    with pytest.raises(Busy, match="bytes are waiting"):
        service.ask(rows("x" * 10_001))
    for _ in range(5):
        assert len(scores(service.ask(rows(*["x"] * 100)))) == 100


def test_whoever_left_is_not_scored(service):
    held = [service.ask(rows("fine")) for _ in range(60)]
    cancelled = sum(future.cancel() for future in held)
    assert len(scores(service.ask(rows(*["x"] * 40)))) == 40
    for future in held:
        if not future.cancelled():
            assert scores(future) == [4.0]
    assert cancelled + sum(not f.cancelled() for f in held) == 60
    assert len(scores(service.ask(rows(*["x"] * 100)))) == 100


def test_the_end_is_told_to_whoever_waits(service):
    future = service.ask(rows("sleep"))
    service.stop()
    with pytest.raises(Busy, match="no scorer is left"):
        future.result(10)
    with pytest.raises(Busy, match="no scorer is left"):
        service.ask(rows("fine"))


@pytest.mark.parametrize("service", [4], indirect=True)
def test_as_many_deadly_requests_as_scorers_at_once(service):
    deadly = [service.ask(rows("poison", "x" * n)) for n in range(4)]
    good = [service.ask(rows("x" * n)) for n in range(1, 9)]
    for future in deadly:
        with pytest.raises(RequestRefused, match="scorers die on these rows"):
            future.result(120)
    assert [scores(future) for future in good] == [[float(n)] for n in range(1, 9)]
    assert service.failed is None and service.waiting_rows == 0


def test_a_service_waits_for_its_scorers_when_all_are_gone_and_cannot_start_yet(
    small_cluster, monkeypatch
):
    """A machine that is gone before Ray knows: who is started there never runs."""
    monkeypatch.setattr("grm_ray.runtime.pool.PAUSE_S", 0.5)
    spawned = []

    def on_a_machine(slot):
        handle, ready = spawn(slot)
        spawned.append(handle)
        if len(spawned) in (3, 4):
            ray.kill(handle)
        return handle, ready

    pool = Pool("scorer", on_a_machine, count=2)
    pool.wait_ready(60)
    service = ScoringService(pool, rows_per_batch=8, most_rows=99, most_bytes=9999, timeout_s=60)
    service.start()
    for handle in spawned[:2]:
        ray.kill(handle)
        with pytest.raises(RayActorError):
            ray.get(handle.__ray_ready__.remote())  # Ray kills when it comes to it
    futures = [service.ask(rows("four")) for _ in range(4)]
    assert [scores(future) for future in futures] == [[4.0]] * 4
    assert len(spawned) == 6
    service.stop()
    for handle in pool.handles:
        ray.kill(handle)

"""Work goes around, and an idle worker that died does not stay unnoticed."""

import asyncio
import os
import signal
import time

import numpy as np
import pytest
import ray

from grm_ray.runtime.health import Patience, State
from grm_ray.runtime.pool import Pool, PoolFailed, Work


@ray.remote(num_cpus=0)
class Echo:
    def pid(self):
        return os.getpid()


def spawn(slot):
    handle = Echo.remote()
    return handle, handle.pid.remote()


def ask(pool):
    """One piece of work at a time, until it is done; says which process did it."""
    pool.submit(Work(lambda handle: handle.pid.remote(), None))
    while True:
        for ref in ray.wait(pool.waitables(), timeout=60)[0]:
            for event in pool.handle(ref):
                if event.kind == "lost":
                    pool.submit(event.work)
                else:
                    return event.value


def test_idle_workers_take_turns_and_a_dead_one_is_found(small_cluster):
    said = []
    pool = Pool("echo", spawn, count=3, say=said.append)
    pids = pool.wait_ready(60)
    assert [ask(pool) for _ in range(6)] == pids * 2

    os.kill(pids[2], signal.SIGKILL)
    answers = [ask(pool) for _ in range(4)]
    assert said == ["echo 2 died and is being replaced"] and pool.replaced == 1
    assert pids[2] not in answers


@ray.remote(num_cpus=0)
class Slow:
    """Doubles numbers; the worker in place 0 takes its time."""

    def __init__(self, seconds):
        self._seconds = seconds

    def pid(self):
        return os.getpid()

    def double(self, number):
        time.sleep(self._seconds)
        return 2 * number


@ray.remote(num_cpus=0)
class SlowStream:
    """The same as a stream of pairs, in an async actor."""

    def __init__(self, seconds):
        self._seconds = seconds
        self.ended = 0

    async def pid(self):
        return os.getpid()

    async def double(self, number):
        try:
            for each in range(3):
                await asyncio.sleep(self._seconds)
                yield np.full(4, 2 * number)
                yield {"number": number, "each": each}
        except asyncio.CancelledError:
            self.ended += 1
            raise

    async def cancelled(self):
        return self.ended


def pool_of(kind, seconds, streaming=False, **options):
    def start(slot):
        handle = kind.remote(seconds[slot])
        return handle, handle.pid.remote()

    pool = Pool("doubler", start, count=len(seconds), **options)
    pool.wait_ready(60)

    def submit(number):
        options = {"num_returns": "streaming"} if streaming else {}
        pool.submit(Work(lambda h: h.double.options(**options).remote(number), number))

    return pool, submit


def until_done(pool, wanted, seconds=60):
    """Events until `wanted` pieces of work have ended."""
    events, until = [], time.monotonic() + seconds
    while sum(e.kind in ("result", "end") for e in events) < wanted:
        assert time.monotonic() < until, [e.kind for e in events]
        for ref in pool._transport.wait(pool.waitables(), 0.2):
            events += pool.handle(ref)
        for event in pool.look_after():
            events.append(event)
        for event in [e for e in events if e.kind == "lost"]:
            events.remove(event)
            pool.submit(event.work)
    return events


def test_the_work_of_a_straggler_is_done_by_another_and_counts_once(small_cluster):
    patience = Patience(at_least_s=0.5)
    pool, submit = pool_of(Slow, [20.0, 0.05, 0.05, 0.05], patience=patience)
    for number in range(16):
        submit(number)
    began = time.monotonic()
    events = until_done(pool, 16)
    assert time.monotonic() - began < 10
    assert sorted(e.value for e in events) == [2 * n for n in range(16)]
    assert sorted(e.work.payload for e in events) == list(range(16))
    assert pool.hedged == 2 and pool.replaced == 0
    assert pool.states[0] is State.SUSPECT and not pool.works()
    # It still has to end what it began; the others have all further work meanwhile.
    submit(16)
    assert [e.value for e in until_done(pool, 1, 10)] == [32]
    for handle in pool.handles:
        ray.kill(handle)


def test_the_stream_of_a_straggler_is_ended_at_its_worker(small_cluster):
    patience = Patience(at_least_s=0.5)
    pool, submit = pool_of(SlowStream, [30.0, 0.05, 0.05], streaming=True, patience=patience)
    for number in range(9):
        submit(number)
    events = until_done(pool, 9)
    said = {(e.value[1]["number"], e.value[1]["each"]) for e in events if e.kind == "item"}
    assert said == {(n, each) for n in range(9) for each in range(3)}
    assert pool.hedged == 2 and pool.busy == []
    straggler = pool.handles[0]
    until = time.monotonic() + 20
    while ray.get(straggler.cancelled.remote()) < 2 and time.monotonic() < until:
        time.sleep(0.1)
    assert ray.get(straggler.cancelled.remote()) == 2
    for handle in pool.handles:
        ray.kill(handle)


def test_who_is_silent_beyond_hope_is_replaced(small_cluster):
    said = []
    seconds = [30.0]
    pool, submit = pool_of(Slow, seconds, dead_s=1.0, say=said.append)
    submit(1)
    seconds[0] = 0.0  # the next one is quick
    assert [e.value for e in until_done(pool, 1)] == [2]
    assert said == ["doubler 0 died and is being replaced"] and pool.retried == 1
    for handle in pool.handles:
        ray.kill(handle)


def test_a_place_whose_workers_always_die_stays_empty_while_others_work(small_cluster):
    @ray.remote(num_cpus=0)
    class Dies:
        def __init__(self, dies):
            self._dies = dies

        def pid(self):
            return os.getpid()

        def double(self, number):
            if self._dies:
                os._exit(1)
            return 2 * number

    said = []
    pool, submit = pool_of(Dies, [True, False], max_replacements=2, say=said.append)
    for number in range(40):
        submit(number)
        until_done(pool, 1)
        if pool.states[0] is State.RETIRED:
            break
        while State.RESTARTING in pool.states:
            for ref in pool._transport.wait(pool.waitables(), 1.0):
                pool.handle(ref)
    assert pool.states == [State.RETIRED, State.HEALTHY]
    assert said[-1] == "doubler 0 died 3 times in a row: no new one is started for 30 s"
    assert len(pool.handles) == 1
    for handle in pool.handles:
        ray.kill(handle)


def test_what_is_forgotten_is_not_told_of(small_cluster):
    pool, submit = pool_of(Slow, [0.5, 0.5])
    for number in range(6):
        submit(number)
    pool.forget()
    assert pool.works() == []
    submit(10)
    assert [e.work.payload for e in until_done(pool, 1)] == [10]
    figures = pool.figures()
    assert figures["doubler/queue"] == 0 and 0 < figures["doubler/busy_share"] <= 1
    for handle in pool.handles:
        ray.kill(handle)


def test_errors_of_the_program_stop_the_run_those_of_the_device_do_not(small_cluster):
    @ray.remote(num_cpus=0)
    class Fails:
        def __init__(self, _):
            self._first = True

        def pid(self):
            return os.getpid()

        def double(self, number):
            if number == 13:
                raise ValueError("13 cannot be doubled")
            if number == 7 and os.path.exists(self.path(number)):
                os.remove(self.path(number))
                raise MemoryError("no memory on the device")
            return 2 * number

        def path(self, number):
            return f"/dev/shm/test-pool-{os.getppid()}-{number}"

    pool, submit = pool_of(Fails, [0.0])
    open(ray.get(pool.handles[0].path.remote(7)), "w").close()
    submit(7)
    assert [e.value for e in until_done(pool, 1)] == [14] and pool.replaced == 1
    submit(13)
    with pytest.raises(PoolFailed, match="13 cannot be doubled"):
        until_done(pool, 1)
    for handle in pool.handles:
        ray.kill(handle)

"""What becomes of work in orders of events that real workers show once in a thousand runs."""

import pytest
from ray.exceptions import ObjectLostError, RayActorError

from grm_ray.runtime.health import Patience, State
from grm_ray.runtime.pool import Pool, PoolFailed, Work

LOST = ObjectLostError("00" * 28, None, "")


class Ref:
    """A result that the test gives when it is time."""

    def __init__(self):
        self.value = None


class Transport:
    """A clock that the test moves."""

    def __init__(self):
        self.seconds = 0.0

    def now(self):
        return self.seconds

    def get(self, ref):
        if isinstance(ref.value, Exception):
            raise ref.value
        return ref.value

    def wait(self, refs, timeout_s):
        return refs

    def kill(self, handle):
        pass

    def cancel(self, ref):
        pass


class Worker:
    def __init__(self, slot):
        self.slot, self.ready, self.refs = slot, Ref(), []

    def do(self):
        self.refs.append(Ref())
        return self.refs[-1]


class Scene:
    def __init__(self, count, starts=lambda worker: None):
        """`starts`: what a worker's ready call gives, or raises."""
        self._starts = starts
        self.workers, self.clock, self.said = [], Transport(), []
        self.pool = Pool(
            "worker",
            self._spawn,
            count,
            transport=self.clock,
            patience=Patience(),
            say=self.said.append,
        )
        self.pool.wait_ready(1)

    def _spawn(self, slot):
        self.workers.append(Worker(slot))
        self.workers[-1].ready.value = self._starts(self.workers[-1])
        return self.workers[-1], self.workers[-1].ready

    def give(self, ref, value):
        """The events of `ref` having `value`."""
        ref.value = value
        return [event.kind for event in self.pool.handle(ref)]

    def submit(self, work):
        """Who got it, and the reference."""
        before = {id(ref) for worker in self.workers for ref in worker.refs}
        self.pool.submit(work)
        return next(
            (worker, ref) for worker in self.workers for ref in worker.refs if id(ref) not in before
        )


def work():
    return Work(lambda worker: worker.do(), None)


def test_a_result_that_nobody_waits_for_says_nothing_of_the_same_work_given_out_again():
    scene, same = Scene(3), work()
    scene.pool._patience._allowed = 2.0
    _, first = scene.submit(same)
    before = len(scene.workers[1].refs)
    scene.clock.seconds = 5.0
    scene.pool.look_after()
    twin = next(w for w in scene.workers[1:] if len(w.refs) > before).refs[-1]
    assert scene.pool.hedged == 1
    assert scene.give(first, LOST) == ["gone"]
    _, again = scene.submit(same)
    assert scene.give(twin, 1) == []
    assert scene.pool.works() == [same]
    assert scene.give(again, 2) == ["result"]
    assert scene.pool.works() == []


def test_all_places_may_die_at_once_and_again_but_not_for_ever():
    scene = Scene(6)
    for round_ in (1, 2):
        for worker, ref in [scene.submit(work()) for _ in range(6)]:
            assert scene.give(ref, RayActorError()) == ["lost"], worker.slot
        assert scene.pool.replaced == 6 * round_
        for worker in scene.workers[-6:]:
            scene.give(worker.ready, None)
    with pytest.raises(PoolFailed, match="worker died 14 times in a row"):
        for _ in range(6):
            scene.give(scene.submit(work())[1], RayActorError())


def test_a_start_that_fails_counts_as_a_death_where_the_role_has_served():
    scene = Scene(2)
    _, ref = scene.submit(work())
    scene.give(ref, RayActorError())
    scene.give(scene.workers[2].ready, RuntimeError("the device is still taken"))
    assert scene.pool.replaced == 2 and len(scene.workers) == 3
    assert scene.said[-1] == "worker 0 died 2 times in a row: no new one is started for 15 s"
    scene.clock.seconds += 15
    scene.pool.look_after()
    scene.give(scene.workers[3].ready, None)
    assert scene.pool.states == [State.HEALTHY, State.HEALTHY]


def test_a_first_start_that_fails_is_an_error_of_the_program():
    with pytest.raises(PoolFailed, match="worker 1 cannot start: no such model"):
        Scene(2, lambda worker: RuntimeError("no such model") if worker.slot else None)


def test_a_place_in_which_nobody_lives_to_start_is_given_up_and_the_others_serve():
    scene = Scene(3, lambda worker: RayActorError() if worker.slot == 1 else None)
    assert scene.pool.states == [State.HEALTHY, State.RETIRED, State.HEALTHY]
    assert scene.said[-1] == "worker 1 died 4 times in a row: no new one is started for 60 s"
    assert scene.give(scene.submit(work())[1], 3) == ["result"]


def test_a_place_that_stays_broken_does_not_end_those_who_have_nothing_to_do():
    scene = Scene(2, lambda worker: RayActorError() if worker.slot else None)
    for _ in range(2 * 3600):
        scene.clock.seconds += 1
        scene.pool.look_after()
        scene.pool.handle(scene.workers[-1].ready)
    assert len(scene.workers) > 8
    assert scene.pool.states == [State.HEALTHY, State.RETIRED]
    assert scene.give(scene.submit(work())[1], 3) == ["result"]


def test_a_machine_with_every_worker_may_be_gone_before_ray_knows():
    """Who is started there never runs, for half a minute; then places wait for a machine."""
    scene = Scene(4)
    for worker, ref in [scene.submit(work()) for _ in range(4)]:
        assert scene.give(ref, RayActorError()) == ["lost"], worker.slot
    for _ in range(40):
        for worker in scene.workers[4:]:
            scene.give(worker.ready, RayActorError())
        scene.clock.seconds += 1
        scene.pool.look_after()
    scene.clock.seconds += 60
    scene.pool.look_after()
    for worker in scene.workers[-4:]:
        scene.give(worker.ready, None)
    assert scene.pool.states == [State.HEALTHY] * 4
    assert scene.give(scene.submit(work())[1], 3) == ["result"]


def test_a_place_stays_empty_while_the_pool_is_at_rest():
    scene = Scene(2, lambda worker: RayActorError() if worker.slot else None)
    started, scene.pool.at_rest = len(scene.workers), True
    scene.clock.seconds += 100
    scene.pool.look_after()
    assert len(scene.workers) == started
    scene.pool.at_rest = False
    scene.clock.seconds += 1
    scene.pool.look_after()
    assert len(scene.workers) == started + 1


def test_work_is_lost_with_when_the_worker_was_last_known_to_live():
    scene = Scene(1)
    scene.clock.seconds = 5.0
    scene.give(scene.submit(work())[1], 1)
    scene.clock.seconds = 9.0
    first, second = scene.submit(work())[1], scene.submit(work())[1]
    first.value = RayActorError()
    lost = scene.pool.handle(first)
    assert [(event.kind, event.value) for event in lost] == [("lost", 5.0), ("lost", None)]
    assert second not in scene.pool.waitables()


def test_a_role_that_dies_of_everything_is_not_pardoned_for_ever():
    scene = Scene(2)
    with pytest.raises(PoolFailed, match="died 6 times in a row"):
        for _ in range(100):
            scene.pool.pardon()
            scene.give(scene.submit(work())[1], RayActorError())
            scene.give(scene.workers[-1].ready, None)
    assert scene.pool.replaced > 16


def test_an_empty_place_is_filled_again_after_a_while_which_doubles():
    broken = [True]
    scene = Scene(2, lambda worker: RayActorError() if worker.slot and broken[0] else None)
    started = len(scene.workers)
    for waited, pause in ((60.0, "120 s"), (120.0, "240 s")):
        assert scene.give(scene.submit(work())[1], 3) == ["result"]
        scene.clock.seconds += waited - 1
        scene.pool.look_after()
        assert len(scene.workers) == started
        scene.clock.seconds += 1
        scene.pool.look_after()
        started += 1
        scene.pool.handle(scene.workers[-1].ready)
        assert scene.said[-1].endswith(pause) and len(scene.workers) == started
    broken[0] = False
    scene.clock.seconds += 240
    scene.pool.look_after()
    scene.pool.handle(scene.workers[-1].ready)
    assert scene.pool.states == [State.HEALTHY, State.HEALTHY]
    assert scene.give(scene.submit(work())[1], 3) == ["result"]

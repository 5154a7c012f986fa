"""Work goes around, and an idle worker that died does not stay unnoticed."""

import os
import signal

import ray

from grm_ray.runtime.pool import Pool, Work


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
    assert said == ["echo 2 died and is replaced"] and pool.replaced == 1
    assert pids[2] not in answers

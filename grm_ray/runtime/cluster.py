"""Joining a Ray cluster or starting one on this machine, and leaving nothing behind."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import psutil

from grm_ray.config.errors import ConfigError
from grm_ray.runtime.placement import Bundle, Node, fit, places, resources, this_machine

# Ray's own processes of a local session, which live as long as it does.
_OWN: list[psutil.Process] = []


@contextlib.contextmanager
def session(wanted: Sequence[Bundle]) -> Iterator[None]:
    """A Ray session with room for `wanted`: the cluster of RAY_ADDRESS, or a local one.

    Raises:
        ConfigError: the workers do not fit, before any of them starts.
    """
    local = not os.environ.get("RAY_ADDRESS")
    if local:
        fit(wanted, [this_machine()])
    # Without this Ray replaces CUDA_VISIBLE_DEVICES by an empty list in workers without a GPU.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "0")
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)}
    children: set[psutil.Process] = set()
    try:
        try:
            if local:
                _start_here(options)
            else:
                ray.init(address="auto" if os.environ["RAY_ADDRESS"] == "auto" else None, **options)
        except SystemExit:  # Ray's own handler of a signal that came while it started
            raise KeyboardInterrupt from None
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)  # Ray puts handlers of its own in their place
        # Known from now on: a raylet that a Ctrl-C ends first leaves its agents to init.
        children |= _children() if local else set()
        _OWN[:] = psutil.Process().children() if local else []
        _quiet_raylet()
        fit(wanted, nodes())
        yield
    finally:
        with _undisturbed():
            children |= _children() if local else set()
            ray.shutdown()
            _end(list(children))
            _OWN.clear()


def ends_with_us(wait_s: float = 0.5) -> bool:
    """Whether a signal to this process went to Ray's own processes as well, as `timeout`, systemd
    and Slurm send theirs: some of them end at once, and whoever asks the others waits a minute."""
    if not _OWN:
        return False
    _, alive = psutil.wait_procs(_OWN, timeout=wait_s)
    return len(alive) < len(_OWN)


def abandon() -> None:
    """End a local session's processes without asking Ray."""
    processes = {*_OWN, *_children()}
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=5)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """A second signal, or one that comes when all is done, must not leave processes behind."""
    if threading.current_thread() is not threading.main_thread():
        yield  # no signal comes here
        return
    before = {s: signal.signal(s, signal.SIG_IGN) for s in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# Ray gives its own processes 30 s to start and has no option for more; on a machine with other work
# that is sometimes too little.
_STARTS = 3


def _start_here(options: dict[str, Any]) -> None:
    import ray

    here = this_machine()
    for left in reversed(range(_STARTS)):
        try:
            ray.init(
                address="local",
                num_cpus=int(here.cpus),
                num_gpus=int(here.gpus),
                include_dashboard=False,
                **options,
            )
            return
        except Exception as error:
            if not left or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            _end(list(_children()))


def _children() -> set[psutil.Process]:
    return set(psutil.Process().children(recursive=True))


def _quiet_raylet() -> None:
    """Keep the raylet's red paragraph about each dead worker out of the job's table.

    No option of Ray turns it off. The pools say in one line what died; the raylet's own log has
    the paragraph.
    """
    from ray._private import worker

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = lambda *args, **kwargs: None


def available() -> list[Node]:
    """The nodes that jobs started from here will find: those of RAY_ADDRESS, or this machine."""
    if not os.environ.get("RAY_ADDRESS"):
        return [this_machine()]
    with session([]):
        return nodes()


def nodes() -> list[Node]:
    """The alive nodes of the joined cluster with their total resources."""
    import ray

    found = []
    for node in ray.nodes():
        if node["Alive"]:
            resources = node["Resources"]
            name = node.get("NodeManagerHostname", node["NodeID"][:8])
            found.append(Node(name, resources.get("CPU", 0), resources.get("GPU", 0)))
    return found


@contextlib.contextmanager
def placement_group(wanted: Sequence[Bundle], timeout_s: float = 60) -> Iterator[Any]:
    """Reserve every bundle at once, so that no worker waits for ever for its place.

    Raises:
        ConfigError: the cluster's free resources do not suffice within `timeout_s`.
    """
    import ray
    from ray.util.placement_group import placement_group as reserve
    from ray.util.placement_group import remove_placement_group

    group = reserve([resources(place) for place in places(wanted)], strategy="PACK")
    try:
        if not group.wait(timeout_s):
            free = {k: v for k, v in ray.available_resources().items() if k in {"CPU", "GPU"}}
            raise ConfigError(
                f"the workers fit the cluster, but it is busy: free now {free}, wanted "
                f"{sum(b.cpus for b in wanted):g} CPU and {sum(b.gpus for b in wanted):g} GPU"
            )
        yield group
    finally:
        with contextlib.suppress(Exception):
            remove_placement_group(group)


# Large tensors in huge pages, where the kernel has them on request: an engine takes its first new
# weights (425 MB) in 0.9 s instead of 2.0 s, later ones 0.1 s faster.
_HUGE_PAGES = "glibc.malloc.hugetlb=1"
# Roles that make activations and free them again keep that memory: by default each large tensor is
# mapped and unmapped, and its pages are zeroed anew (1.5 s of a training step of 13 s; with huge
# pages 6 s).
_KEPT_HEAP = f"glibc.malloc.mmap_threshold={2**32}:glibc.malloc.trim_threshold={2**34}"


def worker_options(group: Any, wanted: Sequence[Bundle], bundle: Bundle, threads: int) -> dict:
    """Ray options of the actor that lives in `bundle`."""
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    environment = {
        # Several roles share the cores: a thread that spins at a barrier steals another's core, and
        # generation took twice as long beside a learner that evaluates. No spinning at all cost a
        # lone engine a third: its threads meet some thousand times a decoding step.
        "OMP_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
        "GOMP_SPINCOUNT": "20000",  # in place of the 0 that PASSIVE stands for
        "KMP_BLOCKTIME": "0",
        "GLIBC_TUNABLES": os.environ.get("GLIBC_TUNABLES")
        or (_HUGE_PAGES if bundle.role == "rollout" else _KEPT_HEAP),
        "TOKENIZERS_PARALLELISM": "false",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        # Engines end by themselves (`runtime.scratch`); killed, they would leave shared memory.
        "RAY_kill_child_processes_on_worker_exit": "0",
    }
    if bundle.gpus == 0:
        environment["DS_ACCELERATOR"] = "cpu"
        environment["CUDA_VISIBLE_DEVICES"] = ""
    return {
        "num_cpus": bundle.cpus,
        "num_gpus": bundle.gpus,
        "max_restarts": 0,  # the pool restarts what it can bring back into a known state
        "runtime_env": {"env_vars": environment},
        "scheduling_strategy": PlacementGroupSchedulingStrategy(
            group,
            placement_group_bundle_index=next(
                i for i, place in enumerate(places(wanted)) if bundle in place
            ),
        ),
    }


def _end(processes: list[psutil.Process], timeout_s: float = 10) -> None:
    """Wait for a local cluster's processes, and end those that do not go by themselves."""
    _, alive = psutil.wait_procs(processes, timeout=timeout_s)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)

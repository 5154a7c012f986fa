"""What goes where: bundles onto nodes, checked before anything starts.

Pure bookkeeping over declared numbers: the nodes may be the cluster at hand or one described in a
file (`--dry-run --cluster FILE`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from pydantic import Field

from grm_ray.config.errors import ConfigError
from grm_ray.config.load import load
from grm_ray.config.schema import Count, Cpus, Rate, Section, Workers


@dataclass(frozen=True)
class Bundle:
    """The resources of one worker actor."""

    role: str
    slot: int
    cpus: float
    gpus: float
    place: str = ""  # bundles with the same name here belong on the same devices

    def __str__(self) -> str:
        gpus = f" + {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.role} {self.slot}: {self.cpus:g} CPU{gpus}"


@dataclass(frozen=True)
class Node:
    """`memory` and `gpu_memory` (of each GPU) in bytes, `gpu_flops`, `gpu_bandwidth` a second;
    None: not known."""

    name: str
    cpus: float
    gpus: float
    memory: float | None = None
    gpu_memory: float | None = None
    gpu_flops: float | None = None
    gpu_bandwidth: float | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.cpus:g} CPU, {self.gpus:g} GPU)"


class DeclaredNode(Section):
    """Memory in GiB, of the machine and of each GPU; what a GPU reaches in plain matrix products
    (TFLOP/s) and in reading its memory (GB/s). Left out, `--dry-run` says nothing of it."""

    name: str
    cpus: Cpus
    gpus: Annotated[int, Field(ge=0, le=1024)] = 0
    count: Count = 1
    memory_gb: Rate | None = None
    gpu_memory_gb: Rate | None = None
    gpu_tflops: Rate | None = None
    gpu_bandwidth: Rate | None = None


class DeclaredCluster(Section):
    """`--cluster FILE`: the cluster to check a config against, instead of the one at hand."""

    nodes: list[DeclaredNode]


def declared(path: Path) -> list[Node]:
    """The nodes that a cluster file declares.

    Raises:
        ConfigError: the file is missing or of another form.
    """
    nodes = []
    for node in load(DeclaredCluster, path, what="cluster").nodes:
        for i in range(node.count):
            name = node.name if node.count == 1 else f"{node.name}-{i}"
            scaled = (
                None if given is None else given * unit
                for given, unit in (
                    (node.memory_gb, 2**30),
                    (node.gpu_memory_gb, 2**30),
                    (node.gpu_tflops, 1e12),
                    (node.gpu_bandwidth, 1e9),
                )
            )
            nodes.append(Node(name, node.cpus, node.gpus, *scaled))
    return nodes


def this_machine() -> Node:
    """The local machine as a node: usable cores (affinity and cgroup quota) and NVIDIA devices."""
    cpus = float(len(os.sched_getaffinity(0)))
    quota = Path("/sys/fs/cgroup/cpu.max")
    if quota.exists():
        limit, period = quota.read_text().split()
        if limit != "max":
            cpus = min(cpus, max(1.0, int(limit) / int(period)))
    gpus = len([p for p in Path("/dev").glob("nvidia[0-9]*") if p.name[6:].isdigit()])
    return Node("this machine", cpus, gpus, _memory())


def _memory() -> float:
    """Bytes that processes here may take together."""
    memory = float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (most := limit.read_text().strip()) != "max":
        memory = min(memory, float(most))
    return memory


def bundles(roles: dict[str, Workers], share: Sequence[str] = ()) -> list[Bundle]:
    """One bundle a worker, role by role.

    Args:
        share: roles whose workers of one number belong on the same devices.
    """
    return [
        Bundle(role, i, workers.cpus, workers.gpus, f"{' + '.join(share)} {i}" * (role in share))
        for role, workers in roles.items()
        for i in range(workers.count)
    ]


def places(wanted: Sequence[Bundle]) -> list[list[Bundle]]:
    """`wanted` in groups, each to be reserved as one, in the order of their first bundles."""
    found: dict[str, list[Bundle]] = {}
    for bundle in wanted:
        found.setdefault(bundle.place or f"{bundle.role} {bundle.slot}", []).append(bundle)
    return list(found.values())


def resources(group: Sequence[Bundle]) -> dict[str, float]:
    """What a group of `places` needs together, as Ray names it."""
    wanted = {"CPU": sum(b.cpus for b in group), "GPU": sum(b.gpus for b in group)}
    return {name: round(amount, 4) for name, amount in wanted.items() if amount > 0}


class _Room:
    """What is left of a node. A part of a GPU is a part of one device, as Ray hands them out."""

    def __init__(self, node: Node) -> None:
        self.node = node
        self._cpus = node.cpus
        self._devices = [1.0] * int(node.gpus)

    def take(self, cpus: float, gpus: float) -> bool:
        """Whether there was room; it is then taken."""
        # Ray counts in ten-thousandths; without the slack 3 x 0.1 would not fit in 0.3.
        share, count = (gpus, 1) if gpus < 1 else (1.0, round(gpus))
        open_devices = [i for i, free in enumerate(self._devices) if free + 1e-6 >= share]
        if self._cpus + 1e-6 < cpus or (gpus and len(open_devices) < count):
            return False
        self._cpus -= cpus
        if gpus:
            for i in sorted(open_devices, key=self._devices.__getitem__)[:count]:  # fullest first
                self._devices[i] -= share
        return True


def most_at_once(wanted: Sequence[Bundle], nodes: Sequence[Node], most: int = 64) -> int:
    """How many jobs that want `wanted` have room beside one another, at most `most`."""
    found = 0
    while found < most:
        several = [
            replace(b, slot=b.slot + 10_000 * job, place=b.place and f"{b.place}, job {job}")
            for job in range(found + 1)
            for b in wanted
        ]
        try:
            fit(several, nodes)
        except ConfigError:
            break
        found += 1
    return found


def fit(wanted: Sequence[Bundle], nodes: Sequence[Node]) -> dict[Bundle, Node]:
    """A node for each bundle: largest first, each on the first node with room.

    Raises:
        ConfigError: naming what does not fit and what the cluster has.
    """
    rooms = [_Room(node) for node in nodes]  # two nodes may look the same
    placed: dict[Bundle, Node] = {}
    left_over: list[Bundle] = []

    def needs(group: list[Bundle]) -> tuple[float, float]:
        return sum(b.gpus for b in group), sum(b.cpus for b in group)

    for group in sorted(places(wanted), key=needs, reverse=True):
        gpus, cpus = needs(group)
        room = next((room for room in rooms if room.take(cpus, gpus)), None)
        if room is None:
            left_over += group
        else:
            placed |= dict.fromkeys(group, room.node)
    if left_over:
        cpus, gpus = sum(b.cpus for b in wanted), sum(b.gpus for b in wanted)
        raise ConfigError(
            f"the workers ask for {cpus:g} CPU and {gpus:g} GPU; the cluster has "
            f"{_some(nodes) or 'no node'}. No room for: {_some(left_over)}. "
            "Lower workers.*.count, cpus or gpus."
        )
    return {bundle: placed[bundle] for bundle in wanted}


def _some(things: Sequence[object]) -> str:
    """The first few, and how many more there are."""
    more = [f"and {len(things) - 6} more"] if len(things) > 6 else []
    return ", ".join([*map(str, things[:6]), *more])

"""What goes where: bundles onto nodes, checked before anything starts.

Pure bookkeeping over declared numbers: the nodes may be the cluster at hand or one described in a
file (`--dry-run --cluster FILE`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from grm_ray.config.load import ConfigError, validate
from grm_ray.config.schema import Cpus, NonNegative, Positive, Section, Workers


@dataclass(frozen=True)
class Bundle:
    """The resources of one worker actor."""

    role: str
    slot: int
    cpus: float
    gpus: float

    def resources(self) -> dict[str, float]:
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        return {name: amount for name, amount in wanted.items() if amount > 0}

    def __str__(self) -> str:
        gpus = f" + {self.gpus:g} GPU" if self.gpus else ""
        return f"{self.role} {self.slot}: {self.cpus:g} CPU{gpus}"


@dataclass(frozen=True)
class Node:
    name: str
    cpus: float
    gpus: float

    def __str__(self) -> str:
        return f"{self.name} ({self.cpus:g} CPU, {self.gpus:g} GPU)"


class DeclaredNode(Section):
    name: str
    cpus: Cpus
    gpus: NonNegative = 0
    count: Positive = 1


class DeclaredCluster(Section):
    """`--cluster FILE`: the cluster to check a config against, instead of the one at hand."""

    nodes: list[DeclaredNode]


def declared(path: Path) -> list[Node]:
    """The nodes that a cluster file declares.

    Raises:
        ConfigError: the file is missing or of another form.
    """
    if not path.is_file():
        raise ConfigError(f"cluster file {path} does not exist")
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: a cluster file has one key, 'nodes'")
    nodes = []
    for node in validate(DeclaredCluster, raw, str(path)).nodes:
        for i in range(node.count):
            name = node.name if node.count == 1 else f"{node.name}-{i}"
            nodes.append(Node(name, node.cpus, node.gpus))
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
    return Node("this machine", cpus, gpus)


def bundles(roles: dict[str, Workers]) -> list[Bundle]:
    """One bundle a worker, role by role."""
    return [
        Bundle(role, slot, workers.cpus, workers.gpus)
        for role, workers in roles.items()
        for slot in range(workers.count)
    ]


def fit(wanted: Sequence[Bundle], nodes: Sequence[Node]) -> dict[Bundle, Node]:
    """A node for each bundle: largest first, each on the first node with room.

    Raises:
        ConfigError: naming what does not fit and what the cluster has.
    """
    room = [(node, [node.cpus, node.gpus]) for node in nodes]  # two nodes may look the same
    placed: dict[Bundle, Node] = {}
    left_over: list[Bundle] = []
    for bundle in sorted(wanted, key=lambda b: (-b.gpus, -b.cpus)):
        for node, free in room:
            # Ray counts in ten-thousandths; without the slack 3 x 0.1 would not fit in 0.3.
            if free[0] + 1e-6 >= bundle.cpus and free[1] + 1e-6 >= bundle.gpus:
                free[0] -= bundle.cpus
                free[1] -= bundle.gpus
                placed[bundle] = node
                break
        else:
            left_over.append(bundle)
    if left_over:
        cpus, gpus = sum(b.cpus for b in wanted), sum(b.gpus for b in wanted)
        raise ConfigError(
            f"the workers ask for {cpus:g} CPU and {gpus:g} GPU; the cluster has "
            f"{', '.join(map(str, nodes)) or 'no node'}. No room for: "
            f"{', '.join(map(str, left_over))}. Lower workers.*.count, cpus or gpus."
        )
    return {bundle: placed[bundle] for bundle in wanted}

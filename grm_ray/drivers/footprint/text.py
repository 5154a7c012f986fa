"""What `--dry-run` says of memory and speed: each role, whether it fits, and what would make it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from grm_ray.config.errors import ConfigError
from grm_ray.config.load import apply
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Job
from grm_ray.drivers.footprint.role import BASELINE, DRIVER, GIB, Role
from grm_ray.drivers.footprint.roles import roles_of
from grm_ray.runtime.placement import Bundle, Node
from grm_ray.runtime.speed import Speed, measure


def described(config: Job, placed: Mapping[Bundle, Node], here: bool) -> str:
    """Sizes, memory, speed and what does not fit; nothing for jobs that only start other jobs.

    Args:
        here: `placed` is on this machine, whose CPU can be measured.
    """
    try:
        roles = roles_of(config)
        if not roles:
            return ""
        missing = dict.fromkeys(why for role in roles for why in role.missing)
        bound = "as far as it is known" if missing else "at most"
        lines = [f"memory, {bound} (GiB)", *map(_line, roles)]
        lines += [f"  {said}" for role in roles for said in dict.fromkeys(role.about)]
        lines += [f"  not known: {why}" for why in missing]
        least = "at least " if missing else ""
        lines += [f"  {said}" for said in _on_nodes(roles, placed, least)]
        if speeds := [f"  {said}" for said in _speeds(config, roles, placed, here)]:
            lines += ["speed, at most", *speeds]
        if crowded := _crowded(roles, placed):
            lines += ["does not fit", *(f"  {said}" for said in crowded)]
            lines.append(f"  {_remedy(config, placed)}")
        return "\n".join(lines)
    except Exception as error:  # noqa: BLE001 - an estimate never makes a dry run fail
        said = " ".join(str(error).split())[:200]
        return f"memory: could not be estimated ({type(error).__name__}: {said})"


def _line(role: Role) -> str:
    count, gpu = role.workers.count, role.workers.gpus > 0
    parts = dict(role.parts)
    if not gpu:
        parts["process"] = BASELINE[role.name] * GIB
    told = " + ".join(f"{what} {_gib(size)}" for what, size in parts.items() if size >= GIB / 200)
    if not any(role.parts.values()):
        return (
            f"  {role.name} x {count}: the memory of its model is not known; process "
            f"{_gib(role.on_host)}"
        )
    line = f"  {role.name} x {count}: {_gib(role.device if gpu else role.on_host)} each: {told}"
    return f"{line}; {_gib(role.on_host)} of the machine's memory" if gpu else line


def _gib(size: float) -> str:
    return f"{size / GIB:.2f}"


def _by_node(roles: Sequence[Role], placed: Mapping[Bundle, Node]) -> dict[str, tuple[Node, float]]:
    """Node name -> the node, and the bytes of its memory that workers take there."""
    found: dict[str, tuple[Node, float]] = {}
    of = {role.name: role for role in roles}
    for i, (bundle, node) in enumerate(placed.items()):
        # Driver and Ray's head are where the job is started; here, on the first node.
        before = found[node.name][1] if node.name in found else DRIVER * GIB * (i == 0)
        role = of.get(bundle.role)
        found[node.name] = node, before + (role.on_host if role else 0.0)
    return found


def _on_nodes(roles: Sequence[Role], placed: Mapping[Bundle, Node], least: str) -> Iterator[str]:
    for name, (node, taken) in _by_node(roles, placed).items():
        has = "memory not known" if node.memory is None else f"of {_gib(node.memory)}"
        yield f"{name}: {least}{_gib(taken)} {has}"


def _crowded(roles: Sequence[Role], placed: Mapping[Bundle, Node]) -> list[str]:
    """What does not fit, where the memory is known."""
    found = []
    for name, (node, taken) in _by_node(roles, placed).items():
        if node.memory is not None and taken > node.memory:
            found.append(f"{name} has {_gib(node.memory)} GiB, but its workers take {_gib(taken)}")
    for role in roles:
        share = min(role.workers.gpus, 1.0)
        nodes = [n for b, n in placed.items() if b.role == role.name and n.gpu_memory is not None]
        if not share or not nodes:
            continue
        room = share * min(float(n.gpu_memory or 0) for n in nodes)
        if role.device + role.keys > room:
            found.append(
                f"{role.name}: {_gib(role.device + role.keys)} GiB on a GPU with room for "
                f"{_gib(room)}"
            )
    return found


def _remedy(config: Job, placed: Mapping[Bundle, Node]) -> str:
    """The first change after which all fits, alone or with the ones before it."""
    together: dict[str, Any] = {}
    for change in _changes(config):
        for tried in (change, {**together, **change}):
            changed = _changed(config, tried)
            if changed is not None and not _crowded(roles_of(changed), placed):
                return f"fits with: {' '.join(f'{key}={value}' for key, value in tried.items())}"
        together |= change
    return "none of these changes helps: " + " ".join(f"{k}={v}" for k, v in together.items())


def _changed(config: Job, changes: Mapping[str, Any]) -> Job | None:
    raw = config.model_dump(mode="json")
    try:
        for key, value in changes.items():
            apply(raw, key, value)
        return type(config).model_validate(raw)
    except (ConfigError, ValueError):
        return None


def _changes(config: Job) -> Iterator[dict[str, Any]]:
    """What takes less memory, from what costs least to what changes most."""
    if isinstance(config, PpoJob | RewardModelJob):
        ppo = isinstance(config, PpoJob)
        at, model = ("ppo", "policy") if ppo else ("training", "model")
        optimizer = config.ppo.optimizer if ppo else config.training.optimizer
        workers = config.workers.learner if ppo else config.workers
        trained = config.policy if ppo else config.model
        tokens = optimizer.tokens_per_micro_batch
        while tokens > 256:
            tokens //= 2
            yield {f"{at}.optimizer.tokens_per_micro_batch": tokens}
        if not trained.gradient_checkpointing and not trained.frozen:
            yield {f"{model}.gradient_checkpointing": "true"}
        if workers.count > 1 and optimizer.zero_stage < 3:
            yield {f"{at}.optimizer.zero_stage": 3}
        if workers.gpus and optimizer.offload == "none":
            yield {f"{at}.optimizer.offload": "optimizer"}
        if trained.lora is None and not trained.frozen:
            yield {f"{model}.lora.rank": 16}
    yield from _fewer(config)


def _fewer(config: Job) -> Iterator[dict[str, Any]]:
    raw = config.model_dump(mode="json")
    engine = (raw.get("rollout") or {}).get("engine") or {}
    if engine.get("kv_cache_gb", 0) > 1:
        yield {"rollout.engine.kv_cache_gb": 1}
    for section in ("reward", "scoring"):
        if (raw.get(section) or {}).get("tokens_per_micro_batch", 0) > 512:
            yield {f"{section}.tokens_per_micro_batch": 512}
    workers = raw["workers"]
    for key, of_role in workers.items():
        if isinstance(of_role, dict) and of_role["count"] > (2 if key == "scorer" else 1):
            yield {f"workers.{key}.count": 2 if key == "scorer" else 1}
    if workers.get("count", 1) > 1:
        yield {"workers.count": 1}


def _speeds(
    config: Job, roles: Sequence[Role], placed: Mapping[Bundle, Node], here: bool
) -> Iterator[str]:
    """Tokens a second of each role, all its workers together, and what a step takes."""
    rates: dict[str, float] = {}
    for role in roles:
        if not role.flops:
            continue
        speed, source = _device(role, placed, here)
        if speed is None:
            yield f"{role.name}: not measured ({source})"
            continue
        for kind, flops in role.flops.items():
            rate = speed.flops / flops
            if kind == "write":
                rows = _rows_at_once(config)
                rate = rows / max(rows * flops / speed.flops, role.reads / speed.bandwidth)
            rates[kind] = rate * _abreast(role, placed)
            yield f"{role.name}: {kind} {rates[kind]:,.0f} tokens/s ({source})"
    step = _step(config, rates)
    if step:
        seconds = sum(step.values())
        parts = ", ".join(f"{kind} {s:.3g}" for kind, s in step.items())
        yield f"a step of full rows: {seconds:.3g} s if the phases run one after another ({parts})"


def _device(role: Role, placed: Mapping[Bundle, Node], here: bool) -> tuple[Speed | None, str]:
    """How fast one worker's device is, and where that is known from."""
    node = next((n for b, n in placed.items() if b.role == role.name), None)
    if role.workers.gpus:
        if node is None or node.gpu_flops is None or node.gpu_bandwidth is None:
            return None, "a cluster file may give gpu_tflops and gpu_bandwidth"
        share = min(role.workers.gpus, 1.0)
        return Speed(node.gpu_flops * share, node.gpu_bandwidth * share), "as declared"
    if not here:
        return None, "another machine's CPUs"
    speed = measure(getattr(torch, role.dtype), role.workers.threads)
    told = (
        f"{speed.flops / 1e9:.0f} GFLOP/s and {speed.bandwidth / 1e9:.0f} GB/s a worker, measured"
    )
    return speed, told


def _abreast(role: Role, placed: Mapping[Bundle, Node]) -> float:
    """How many workers' worth the role has: on CPUs no more than there are cores."""
    if role.workers.gpus:
        return role.workers.count
    nodes = {n.name: n for b, n in placed.items() if b.role == role.name}
    cores = sum(node.cpus for node in nodes.values()) or role.workers.threads
    return min(role.workers.count, cores / role.workers.threads)


def _rows_at_once(config: Any) -> int:
    rows = config.rollout.samples_per_prompt
    rows *= getattr(config.rollout, "prompts_per_step", None) or config.prompts_per_shard
    each = -(-rows // config.workers.rollout.count)
    return min(each, config.rollout.engine.max_num_seqs)


def _step(config: Job, rates: Mapping[str, float]) -> dict[str, float]:
    """Seconds of each kind of work in a step whose rows are as long as they may be."""
    if isinstance(config, RewardModelJob) and "train" in rates:
        tokens = config.training.pairs_per_step * 2 * config.data.max_length
        return {"train": tokens / rates["train"]}
    if isinstance(config, PpoJob) and {"train", "evaluate", "write", "score"} <= set(rates):
        rollout, samples = config.rollout, config.rollout.samples_per_prompt
        written = rollout.prompts_per_step * samples * rollout.max_new_tokens
        read = written + rollout.prompts_per_step * config.data.max_prompt_length
        tokens = {"write": written, "score": read, "evaluate": read}
        tokens["train"] = read * config.ppo.epochs
        return {kind: number / rates[kind] for kind, number in tokens.items()}
    return {}

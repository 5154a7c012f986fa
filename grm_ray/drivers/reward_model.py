"""Train a reward model: the driver plans each step's pairs, the ranks do the work."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

import numpy as np

from grm_ray.config.load import ConfigError
from grm_ray.config.schema import RewardModelJob, Source
from grm_ray.data import sources
from grm_ray.data.order import EpochOrder
from grm_ray.data.packing import split_by_tokens
from grm_ray.data.sources import Pair, Quarantine
from grm_ray.drivers.checks import check, roles
from grm_ray.drivers.groups import Group
from grm_ray.drivers.run_folder import open_run, saved_state
from grm_ray.models import backbone
from grm_ray.models.checkpoint import model_identity
from grm_ray.reporting.page import write_report
from grm_ray.runtime import cluster
from grm_ray.runtime.live import RM_COLUMNS, LiveTable
from grm_ray.runtime.placement import bundles
from grm_ray.runtime.snapshot import Snapshots
from grm_ray.runtime.tracking import Tracker
from grm_ray.study.intervals import bootstrap_mean


def run(config: RewardModelJob, resume: bool = False) -> Path:
    """Train, evaluate, save; returns the path of the report.

    Raises:
        ConfigError: config or data is wrong; nothing was started.
    """
    check(config)
    quarantine = Quarantine()
    train, held_out = read_pairs(config, quarantine)
    path = backbone.resolve(config.model.path)
    identity = {"model": model_identity(path), "training data": _fingerprint(train)}
    snapshots = Snapshots(
        Path(config.runs).expanduser() / config.name / "checkpoints", config.checkpoint.keep
    )
    saved = saved_state(snapshots, identity, config, resume)
    wanted = bundles(roles(config))
    with cluster.session(wanted):
        folder = open_run(config, resume)
        quarantine.write(folder / "quarantine.jsonl")
        with cluster.placement_group(wanted) as placed:
            driver = _Driver(config, folder, path, placed, wanted)
            try:
                driver.prepare(train, held_out, quarantine, saved, identity)
                driver.train(snapshots)
                driver.finish()
            finally:
                driver.close()
        return write_report(folder)


def read_pairs(config: RewardModelJob, quarantine: Quarantine) -> tuple[list[Pair], list[Pair]]:
    """Training and held-out pairs, with no prompt in both."""
    data = config.data
    train = sources.pairs(data.train, quarantine)
    if data.eval is not None:
        held_out = _limited(sources.pairs(data.eval, quarantine), data.eval, config.seed)
        shared = {pair.prompt_id for pair in held_out}
        kept = [pair for pair in train if pair.prompt_id not in shared]
        for _ in range(len(train) - len(kept)):
            quarantine.add(data.train.path, 0, "prompt shared with the held-out set")
        train = _limited(kept, data.train, config.seed)
    else:
        train = _limited(train, data.train, config.seed)
        ids = sorted({pair.prompt_id for pair in train})
        count = max(1, round(data.holdout * len(ids)))
        out = set(np.random.default_rng(config.seed).permutation(ids)[:count].tolist())
        held_out = [pair for pair in train if pair.prompt_id in out]
        train = [pair for pair in train if pair.prompt_id not in out]
    if not train or not held_out:
        raise ConfigError(
            f"{data.train.path}: {len(train)} training and {len(held_out)} held-out pairs left; "
            "both need at least one"
        )
    return train, held_out


def _fingerprint(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr(pair).encode())
    return digest.hexdigest()


def _limited(pairs: list[Pair], source: Source, seed: int) -> list[Pair]:
    if source.shuffle:
        pairs = [pairs[i] for i in np.random.default_rng([seed, 1]).permutation(len(pairs))]
    return pairs[: source.limit]


class _Driver:
    def __init__(
        self, config: RewardModelJob, folder: Path, path: str, placed: Any, wanted: list
    ) -> None:
        from grm_ray.workers.reward_trainer import RewardTrainer

        self._config, self._folder, self._path = config, folder, path
        self._tracker = Tracker(folder, {"run": config.name, "job": "rm"}, list(config.tracking))
        self._table = LiveTable(RM_COLUMNS)
        self._table.status("starting workers")
        world, threads = config.workers.count, config.workers.threads

        def make(rank: int) -> Any:
            options = cluster.worker_options(placed, wanted, wanted[rank], threads)
            return RewardTrainer.options(**options).remote(
                config.model_dump(mode="json"),
                rank,
                world,
                path,
                threads,
                str(folder / "logs" / f"trainer-{rank}.log"),
            )

        self._group = Group(make, world, config.timeout_s)
        self._step = 0

    def prepare(
        self,
        train: list[Pair],
        held_out: list[Pair],
        quarantine: Quarantine,
        saved: tuple[Path, dict] | None,
        identity: dict[str, str],
    ) -> None:
        """Tokenise, load the model on every rank, restore a checkpoint."""
        import ray

        from grm_ray.workers.encoder import start_encoder

        config, data = self._config, self._config.data
        encoder = start_encoder(
            self._path,
            config.model.trust_remote_code,
            str(self._folder / "logs" / "encoder.log"),
        )
        encoded = [
            encoder.pairs.remote(pairs, data.max_length, data.truncation)
            for pairs in (train, held_out)
        ]
        del encoder
        self._group.begin_setup()
        self._train, self._held_out = ray.get([metadata for _, metadata in encoded])
        for name, metadata in (("training", self._train), ("held-out", self._held_out)):
            if not metadata["uids"]:
                raise ConfigError(
                    f"no {name} pair fits data.max_length: {config.data.max_length} "
                    f"({len(metadata['left_out'])} are longer)"
                )
        self._report_data(quarantine)
        count = len(self._train["lengths"])
        training = config.training
        self._per_step = min(training.pairs_per_step, count)
        self._total = max(1, round(training.epochs * count / self._per_step))
        self._order = EpochOrder(count, config.seed, config.data.train.shuffle)
        self._identity = identity
        self._group.end_setup()
        self._group.call("begin", self._total, *(table for table, _ in encoded))
        if saved is not None:
            self._group.call("load", str(saved[0] / "trainer"))
            self._step = saved[1]["step"]
            self._tracker.resume(self._step)
            self._table.message(f"resumed after step {self._step}")

    def train(self, snapshots: Snapshots) -> None:
        """The loop: plan, step, evaluate, checkpoint."""
        config = self._config
        if self._step == 0 and config.training.eval_every:
            self._tracker.log({"step": 0, **self._evaluate()})
        while self._step < self._total:
            self._step += 1
            self._table.status(f"step {self._step} of {self._total}")
            metrics = self._one_step()
            last = self._step == self._total
            if last or (
                config.training.eval_every and self._step % config.training.eval_every == 0
            ):
                metrics |= self._evaluate()
            self._tracker.log(metrics)
            self._table.row(metrics)
            if config.checkpoint.every and self._step % config.checkpoint.every == 0:
                snapshots.write(self._step, self._snapshot)

    def finish(self) -> None:
        """Save the reward model with its card."""
        target = self._folder / "model"
        self._table.status("saving")
        fingerprint = self._group.call("save_model", str(target), self._card())[0]
        self._table.message(f"reward model {target} (fingerprint {fingerprint[:12]})")

    def close(self) -> None:
        self._tracker.close()
        self._table.close()
        self._group.kill()

    # ------------------------------------------------------------------ inside

    def _one_step(self) -> dict[str, Any]:
        began = time.perf_counter()
        position = (self._step - 1) * self._per_step
        rows = [row for row, _ in self._order.take(position, self._per_step)]
        lengths = [self._train["lengths"][row] for row in rows]
        shares = split_by_tokens(lengths, len(self._group.ranks))
        results = self._group.gather(
            [
                rank.step.remote([rows[i] for i in share], len(rows))
                for rank, share in zip(self._group.ranks, shares, strict=True)
            ]
        )
        seconds = time.perf_counter() - began
        return {
            "step": self._step,
            **results[0],
            "tokens_per_second": sum(lengths) / seconds,
            "phase/learn": seconds,
        }

    def _evaluate(self) -> dict[str, Any]:
        """Held-out accuracy with its interval, clustered by prompt."""
        began = time.perf_counter()
        self._table.status("evaluating")
        shares = split_by_tokens(self._held_out["lengths"], len(self._group.ranks))
        parts = self._group.gather(
            [
                rank.evaluate.remote(share)
                for rank, share in zip(self._group.ranks, shares, strict=True)
            ]
        )
        rows = [row for part in parts for row in part["rows"]]
        correct = np.array([c for part in parts for c in part["correct"]], dtype=float)
        loss = np.array([value for part in parts for value in part["loss"]])
        prompts = [self._held_out["uids"][row].split(":")[0] for row in rows]
        interval = bootstrap_mean(correct, clusters=np.array(prompts), seed=self._config.seed)
        return {
            "eval/accuracy": interval.mean,
            "eval/accuracy_low": interval.low,
            "eval/accuracy_high": interval.high,
            "eval/loss": float(loss.mean()),
            "phase/evaluate": time.perf_counter() - began,
        }

    def _snapshot(self, part: Path) -> dict[str, Any]:
        hashes = self._group.call("save", str(part / "trainer"), {})
        return {
            "identity": self._identity,
            "config": self._config.model_dump(mode="json"),
            "hashes": hashes,
        }

    def _report_data(self, quarantine: Quarantine) -> None:
        data = self._config.data
        sides = ((self._train, data.train), (self._held_out, data.eval or data.train))
        for metadata, source in sides:
            for uid, reason in metadata["left_out"]:
                quarantine.add(source.path, 0, reason, uid)
        quarantine.write(self._folder / "quarantine.jsonl")
        shown = ", ".join(f"{count} {reason}" for reason, count in quarantine.counts().items())
        cut = sum(metadata["truncated"] for metadata, _ in sides)
        self._table.message(
            f"{len(self._train['uids'])} training pairs, {len(self._held_out['uids'])} held out"
            + (f"; left out: {shown} (quarantine.jsonl)" if shown else "")
            + (f"; {cut} cut to data.max_length ({data.truncation})" if cut else "")
        )

    def _card(self) -> str:
        loss = self._config.loss
        return (
            f"---\nlibrary_name: transformers\npipeline_tag: text-classification\n---\n"
            f"# {self._config.name}\n\nReward model trained by grm_ray from "
            f"`{self._config.model.path}`.\n\n"
            f"- preference loss: {loss.preference}; regularizer: {loss.regularizer} "
            f"(alpha {loss.alpha}, beta {loss.beta})\n"
            f"- data: `{self._config.data.train.path}`, {len(self._train['uids'])} pairs\n"
            f"- head: {self._config.head.kind}, in `reward_head.safetensors`\n"
            f"- scoring contract: `scoring_contract.json`; scores are raw, unbounded, and only "
            f"their differences under one prompt carry meaning\n\n"
            f"```json\n{json.dumps(self._config.model_dump(mode='json'), indent=1)}\n```\n"
        )

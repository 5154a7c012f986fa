"""Train a reward model: the driver plans each step's rows, the ranks do the work."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grm_ray.config.load import ConfigError
from grm_ray.config.schema import RewardModelJob
from grm_ray.data.order import MixtureOrder
from grm_ray.data.packing import split_by_tokens
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.alarms import Alarms
from grm_ray.drivers.checks import check, roles
from grm_ray.drivers.groups import Group
from grm_ray.drivers.run_folder import check_identity, open_run, saved_state
from grm_ray.models import backbone
from grm_ray.models.checkpoint import model_identity
from grm_ray.reporting.page import write_report
from grm_ray.runtime import cluster
from grm_ray.runtime.live import RM_COLUMNS, LiveTable
from grm_ray.runtime.placement import bundles
from grm_ray.runtime.snapshot import Snapshots
from grm_ray.runtime.tracking import Tracker
from grm_ray.study.intervals import bootstrap_mean
from grm_ray.study.preferences import Contest, length_correlation
from grm_ray.training.reward_loss import RewardLoss

# Pairs of a step that the gradients of both losses are looked at on.
LOOKED_AT = 4


def run(config: RewardModelJob, resume: bool = False) -> Path:
    """Train, evaluate, save; returns the path of the report.

    Raises:
        ConfigError: config or data is wrong; nothing was trained.
    """
    check(config)
    path = backbone.resolve(config.model.path)
    identity = {"model": model_identity(path)}
    snapshots = Snapshots(
        Path(config.runs).expanduser() / config.name / "checkpoints", config.checkpoint.keep
    )
    saved = saved_state(snapshots, identity, config, resume)
    wanted = bundles(roles(config))
    with cluster.session(wanted):
        folder = open_run(config, resume)
        with cluster.placement_group(wanted) as placed:
            driver = _Driver(config, folder, path, placed, wanted)
            try:
                driver.prepare(saved, identity)
                driver.train(snapshots)
                driver.finish()
            finally:
                driver.close()
        return write_report(folder)


@dataclass
class _Rows:
    """What the driver knows of a set: where its tables lie, and numbers a row."""

    refs: list[Any] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    truncated: int = 0
    by_source: dict[int, int] = field(default_factory=dict)

    def add(self, ref: Any, metadata: dict[str, Any]) -> None:
        self.refs.append(ref)
        self.counts.append(len(metadata["uids"]))
        self.uids += metadata["uids"]
        self.lengths += metadata["lengths"]
        self.weights += metadata["weights"]
        self.truncated += metadata["truncated"]
        source = metadata["source"]
        self.by_source[source] = self.by_source.get(source, 0) + len(metadata["uids"])

    @property
    def pieces(self) -> tuple[list[Any], list[int]]:
        return self.refs, self.counts


class _Driver:
    def __init__(
        self, config: RewardModelJob, folder: Path, path: str, placed: Any, wanted: list
    ) -> None:
        from grm_ray.workers.reward_trainer import RewardTrainer

        self._config, self._folder, self._path = config, folder, path
        self._loss = RewardLoss(config.loss)
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
        self._best: float | None = None
        self._scores: dict[str, dict[str, Any]] = {}
        self._left_out: dict[str, int] = {}

    def prepare(self, saved: tuple[Path, dict] | None, identity: dict[str, str]) -> None:
        """Tokenise, load the model on every rank, restore a checkpoint."""
        self._table.status("reading data")
        stream = self._start_reading()
        self._group.begin_setup()
        self._read(stream)
        self._identity = {**identity, "training data": self._fingerprint}
        if saved is not None:
            check_identity(saved, self._identity)
        config, training = self._config, self._config.training
        train = self._sets["train"]
        counts = [train.by_source.get(i, 0) for i in range(len(config.data.train))]
        weights = [source.weight for source in config.data.train]
        shuffle = all(source.shuffle for source in config.data.train)
        self._order = MixtureOrder(counts, weights, config.seed, shuffle)
        rows = self._order.length(training.epochs)
        self._per_step = min(training.pairs_per_step, rows)
        self._total = max(1, round(rows / self._per_step))
        self._alarms = Alarms(self._per_step, self._total)
        self._group.end_setup()
        tables = {name: found.pieces for name, found in self._sets.items()}
        self._group.call("begin", self._total, tables)
        if self._loss.needs_reference:
            self._group.call("take_reference", self._reference())
        if saved is not None:
            self._group.call("load", str(saved[0] / "trainer"))
            self._step, self._best = saved[1]["step"], saved[1].get("best")
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
            if self._is_evaluated():
                metrics |= self._evaluate() | self._health()
                self._keep_if_best(metrics)
            self._tracker.log(metrics)
            self._table.row(metrics)
            for warning in self._alarms.after(metrics):
                self._table.message(f"warning: {warning}")
            if config.checkpoint.every and self._step % config.checkpoint.every == 0:
                snapshots.write(self._step, self._snapshot)

    def finish(self) -> None:
        """Save the reward model with its card, unless the best one was saved before."""
        if self._config.checkpoint.best_by is None:
            self._save()

    def close(self) -> None:
        self._tracker.close()
        self._table.close()
        self._group.kill()

    # -------------------------------------------------------------------- data

    def _start_reading(self) -> Any:
        from grm_ray.workers.encoder import start_encoder

        config = self._config
        encoder = start_encoder(
            self._path,
            config.model.trust_remote_code,
            str(self._folder / "logs" / "encoder.log"),
        )
        return encoder.pairs.options(num_returns="streaming").remote(
            config.data.model_dump(mode="json"),
            config.seed,
            tuple(config.head.attributes),
            self._loss.needs_margin,
            config.loss.missing_margin,
        )

    def _read(self, stream: Any) -> None:
        """Take the encoder's pieces; tell what was left out, and of which rows the run is made.

        Raises:
            ConfigError: a source cannot be used, or no row of a set fits.
        """
        import ray

        data, quarantine = self._config.data, Quarantine()
        try:
            next(stream)
            plan = ray.get(next(stream))
            quarantine.rows = plan["quarantine"]
            quarantine.write(self._folder / "quarantine.jsonl")
            self._fingerprint = plan["fingerprint"]
            self._sets = {name: _Rows() for name in ("train", *plan["sets"])}
            for ref in stream:
                metadata = ray.get(next(stream))
                self._sets[metadata["set"]].add(ref, metadata)
                source = data.eval.get(metadata["set"], data.train[metadata["source"]])
                for uid, reason in metadata["left_out"]:
                    quarantine.add(source.path, 0, reason, uid)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, ConfigError):
                raise ConfigError(str(error.cause)) from None
            raise
        quarantine.write(self._folder / "quarantine.jsonl")
        self._left_out = quarantine.counts()
        for name, found in self._sets.items():
            if not found.uids:
                raise ConfigError(
                    f"no pair of '{name}' is left: "
                    + (", ".join(f"{n} {reason}" for reason, n in self._left_out.items()) or "none")
                    + f" (data.max_length: {data.max_length})"
                )
        self._table.message(self._what_was_read())

    def _what_was_read(self) -> str:
        data = self._config.data
        held = ", ".join(f"{len(f.uids)} {n}" for n, f in self._sets.items() if n != "train")
        shown = ", ".join(f"{count} {reason}" for reason, count in self._left_out.items())
        cut = sum(found.truncated for found in self._sets.values())
        rows = "graded answers" if self._loss.regression else "training pairs"
        return (
            f"{len(self._sets['train'].uids)} {rows}; to evaluate on: {held}"
            + (f"; left out: {shown} (quarantine.jsonl)" if shown else "")
            + (f"; {cut} cut to data.max_length ({data.truncation})" if cut else "")
        )

    def _reference(self) -> np.ndarray:
        """`(rows, 2)` log-probs under the starting model, of the rows that the run will see.

        They depend on nothing that changes: made once, and kept for a resumed run.
        """
        file = self._folder / "reference_logprobs.npy"
        if file.exists():
            return np.load(file)
        self._table.status("log-probs of the starting model")
        train = self._sets["train"]
        used = sorted({row for row, _ in self._order.take(0, self._total * self._per_step)})
        shares = split_by_tokens([train.lengths[row] for row in used], len(self._group.ranks))
        found = self._group.gather(
            [
                rank.reference_logprobs.remote([used[i] for i in share])
                for rank, share in zip(self._group.ranks, shares, strict=True)
            ]
        )
        logprobs = np.full((len(train.uids), 2), np.nan, np.float32)
        for share, part in zip(shares, found, strict=True):
            logprobs[[used[i] for i in share]] = part
        part = file.with_suffix(".part.npy")
        np.save(part, logprobs)
        part.replace(file)
        return logprobs

    # ------------------------------------------------------------------- steps

    def _rows_of_step(self) -> list[int]:
        position = (self._step - 1) * self._per_step
        return [row for row, _ in self._order.take(position, self._per_step)]

    def _one_step(self) -> dict[str, Any]:
        began = time.perf_counter()
        rows, train = self._rows_of_step(), self._sets["train"]
        lengths = [train.lengths[row] for row in rows]
        weights = sum(train.weights[row] for row in rows)
        by_weight = self._loss.regression or self._config.loss.normalize_by == "margins"
        totals = (weights if by_weight else float(len(rows)), float(len(rows)))
        shares = split_by_tokens(lengths, len(self._group.ranks))
        results = self._group.gather(
            [
                rank.step.remote([rows[i] for i in share], totals)
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

    def _is_evaluated(self) -> bool:
        every = self._config.training.eval_every
        return self._step == self._total or bool(every and self._step % every == 0)

    def _evaluate(self) -> dict[str, Any]:
        """Accuracy on every evaluation set, with intervals clustered by prompt.

        The first set, or the one that `checkpoint.best_by` names, is `eval/...`; where there are
        several, each is `eval/<name>/...` too.
        """
        began = time.perf_counter()
        self._table.status("evaluating")
        names = [name for name in self._sets if name != "train"]
        first = self._config.checkpoint.best_by or names[0]
        metrics: dict[str, Any] = {}
        for name in names:
            found = self._scores[name] = self._judge(name)
            if len(names) > 1:
                metrics |= {f"eval/{name}/{key}": value for key, value in found.items()}
            if name == first:
                metrics |= {f"eval/{key}": value for key, value in found.items()}
        return {**metrics, "phase/evaluate": time.perf_counter() - began}

    def _judge(self, name: str) -> dict[str, Any]:
        rows = self._sets[name]
        shares = split_by_tokens(rows.lengths, len(self._group.ranks))
        parts = self._group.gather(
            [
                rank.evaluate.remote(name, share)
                for rank, share in zip(self._group.ranks, shares, strict=True)
            ]
        )
        scores, lengths = np.zeros((len(rows.uids), 2)), np.zeros((len(rows.uids), 2))
        for share, part in zip(shares, parts, strict=True):
            scores[share], lengths[share] = part["scores"], part["lengths"]
        prompts = [uid.split(":")[0] for uid in rows.uids]
        margins = scores[:, 0] - scores[:, 1]
        interval = bootstrap_mean(margins > 0, clusters=prompts, seed=self._config.seed)
        contests = [
            Contest(s[:1], s[1:], n[:1], n[1:], "", prompt)
            for s, n, prompt in zip(scores, lengths, prompts, strict=True)
        ]
        return {
            "accuracy": interval.mean,
            "accuracy_low": interval.low,
            "accuracy_high": interval.high,
            "loss": float(np.logaddexp(0, -margins).mean()),
            "ties": int((margins == 0).sum()),
            "length_correlation": length_correlation(contests).spearman,
        }

    def _health(self) -> dict[str, float]:
        if self._loss.regression:
            return {}
        return self._group.call("health", self._rows_of_step()[:LOOKED_AT])[0]

    # ------------------------------------------------------------------ saving

    def _keep_if_best(self, metrics: dict[str, Any]) -> None:
        if self._config.checkpoint.best_by is None:
            return
        if self._best is None or metrics["eval/accuracy"] > self._best:
            self._best = metrics["eval/accuracy"]
            self._save()

    def _save(self) -> None:
        target = self._folder / "model"
        self._table.status("saving")
        fingerprint = self._group.call("save_model", str(target), self._facts())[0]
        self._table.message(
            f"reward model {target} (step {self._step}, fingerprint {fingerprint[:12]})"
        )

    def _snapshot(self, part: Path) -> dict[str, Any]:
        hashes = self._group.call("save", str(part / "trainer"), {})
        return {
            "identity": self._identity,
            "config": self._config.model_dump(mode="json"),
            "hashes": hashes,
            "best": self._best,
        }

    def _facts(self) -> dict[str, Any]:
        """What the model card tells, besides the scoring contract."""
        config, data = self._config, self._config.data
        loss = config.loss
        train = self._sets["train"]
        sources = [
            {
                "path": source.path,
                "use": "training",
                "rows": train.by_source.get(number, 0),
                "weight": source.weight,
                "left_out": self._left_out if number == 0 else {},
            }
            for number, source in enumerate(data.train)
        ]
        for name, found in self._sets.items():
            if name != "train":
                path = data.eval[name].path if name in data.eval else data.train[0].path
                sources.append({"path": path, "use": name, "rows": len(found.uids)})
        return {
            "name": config.name,
            "base_model": config.model.path,
            "data": sources,
            "losses": {
                "preference": loss.preference,
                "regularizer": f"{loss.regularizer} (alpha {loss.alpha}, beta {loss.beta})"
                if loss.alpha
                else "none",
                **{
                    name: getattr(loss, name)
                    for name in ("label_smoothing", "centering", "score_l2")
                    if getattr(loss, name)
                },
                "steps": f"{self._step} of {self._total}, {self._per_step} rows each",
            },
            "scores": [
                {
                    "set": name,
                    "value": found["accuracy"],
                    "low": found["accuracy_low"],
                    "high": found["accuracy_high"],
                    "rows": len(self._sets[name].uids),
                }
                for name, found in self._scores.items()
            ],
            "config": config.model_dump(mode="json"),
        }

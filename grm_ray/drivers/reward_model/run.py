"""Train a reward model: the driver plans each step's rows, the ranks do the work."""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np

from grm_ray.config.reward_model import RewardModelJob
from grm_ray.data.order import MixtureOrder
from grm_ray.data.packing import split_by_tokens
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.checks.jobs import look_up
from grm_ray.drivers.checks.plan import bundles_of
from grm_ray.drivers.groups import Group
from grm_ray.drivers.recovery import keep_going
from grm_ray.drivers.reward_model.alarms import Alarms
from grm_ray.drivers.reward_model.rows import card_facts, read, start_reading
from grm_ray.drivers.run_folder import DONE, check_identity, claim, open_run, saved_state
from grm_ray.drivers.updates import Updates
from grm_ray.models import backbone
from grm_ray.models.checkpoint import model_identity
from grm_ray.reporting.page import write_report
from grm_ray.runtime import cluster, timeline
from grm_ray.runtime.disk import writing
from grm_ray.runtime.snapshot import Snapshots
from grm_ray.runtime.terminal_table import RM_COLUMNS, LiveTable
from grm_ray.runtime.tracking import Tracker
from grm_ray.study.intervals import SHARE, bootstrap_mean
from grm_ray.study.preferences import ScoredContest, length_correlation
from grm_ray.training.reward_loss import RewardLoss

# Pairs of a step that the gradients of both losses are looked at on.
LOOKED_AT = 4


def run(config: RewardModelJob, resume: bool = False) -> Path:
    """Train, evaluate, save; returns the path of the report.

    Raises:
        ConfigError: config or data is wrong; nothing was trained.
    """
    check(config)
    claim(config)
    look_up(config.model)
    path = backbone.resolve(config.model.path)
    identity = {"model": model_identity(path)}
    snapshots = Snapshots(
        Path(config.runs).expanduser() / config.name / "checkpoints", config.checkpoint.keep
    )
    saved = saved_state(snapshots, identity, config, resume)
    wanted = bundles_of(config)
    with cluster.session(wanted):
        folder = open_run(config, resume)
        with cluster.placement_group(wanted) as placed:
            driver = RewardModelRun(config, folder, path, placed, wanted, snapshots)
            try:
                driver.prepare(saved, identity)
                driver.train()
            finally:
                driver.close()
        return write_report(folder)


class RewardModelRun:
    """One training under way: its ranks, and all that the driver itself knows of it."""

    def __init__(
        self,
        config: RewardModelJob,
        folder: Path,
        path: str,
        placed: Any,
        wanted: list,
        snapshots: Snapshots,
    ) -> None:
        from grm_ray.workers.reward_trainer import RewardTrainer

        self._config, self._folder, self._path = config, folder, path
        self._snapshots = snapshots
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
        budget = config.training.optimizer.tokens_per_micro_batch
        self._updates = Updates("training.optimizer", budget)
        self._step, self._begun = 0, False
        self._best: float | None = None
        self._scores: dict[str, dict[str, Any]] = {}

    def prepare(self, saved: tuple[Path, dict] | None, identity: dict[str, str]) -> None:
        """Tokenise, load the model on every rank, restore a checkpoint."""
        self._table.status("reading data")
        config, training = self._config, self._config.training
        log = self._folder / "logs" / "encoder.log"
        stream = start_reading(config, self._loss, self._path, log)
        self._group.begin_setup()
        self._read = read(config, stream, self._folder / "quarantine.jsonl")
        self._table.message(self._read.in_words(config))
        self._identity = {**identity, "training data": self._read.fingerprint}
        if saved is not None:
            check_identity(saved, self._identity)
        self._sets = self._read.sets
        sources, by_source = config.data.train, self._sets["train"].by_source
        self._order = MixtureOrder(
            [by_source.get(number, 0) for number in range(len(sources))],
            [source.weight for source in sources],
            config.seed,
            any(source.shuffle for source in sources),
        )
        self._rows = max(1, self._order.length(training.epochs))
        self._per_step = min(training.pairs_per_step, self._rows)
        self._total = math.ceil(self._rows / self._per_step)  # the last step may be shorter
        self._alarms = Alarms(self._per_step, self._total)
        self._group.end_setup()
        self._saved = saved

    def _begin(self, saved: tuple[Path, dict] | None) -> None:
        """Bring fresh ranks to the checkpoint, or to the start."""
        config = self._config
        tables = {name: found.pieces for name, found in self._sets.items()}
        self._group.call("begin", self._total, tables)
        if self._loss.needs_reference:
            self._group.call("take_reference", self._reference())
        if saved is not None:
            with self._snapshots.reading(saved[0]):
                self._group.call("load", str(saved[0] / "trainer"))
            self._step = saved[1]["step"]
            if saved[1]["config"]["checkpoint"]["best_by"] == config.checkpoint.best_by:
                self._best = saved[1]["best"]  # of another set it would say nothing
            self._tracker.resume(self._step)
            self._table.message(f"resumed after step {self._step}")
        self._begun = True

    def _recover(self) -> None:
        """New ranks, brought to the last checkpoint, or to the start of the run."""
        self._table.status("starting new trainers")
        self._group.restart()
        if not self._begun:
            return  # `_begin` comes again
        self._scores = {}
        saved = self._snapshots.latest()
        if saved is None:
            self._step, self._best = 0, None
            self._tracker.resume(-1)
            self._table.message("restarted from the beginning")
        self._begin(saved)

    def train(self) -> None:
        """All steps, and the model saved; ranks that die are replaced."""
        keep_going(self._train, self._recover, lambda: self._step, self._table.message)

    def _train(self) -> None:
        """The loop: plan, step, evaluate, checkpoint."""
        config = self._config
        if not self._begun:
            self._begin(self._saved)
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
                self._snapshots.attempt(self._step, self._snapshot, self._table.message)
        self._finish()

    def _finish(self) -> None:
        """Save the reward model with its card, unless the best one was saved before.

        `done.json` comes last: who finds it finds the model as it stays.
        """
        if not self._scores:  # resumed after the last step
            self._evaluate()
        if self._best is None:
            self._save()
        done = {"steps": self._step, "best": self._best}
        with writing(self._folder / DONE):
            (self._folder / DONE).write_text(json.dumps(done) + "\n", encoding="utf-8")

    def close(self) -> None:
        self._tracker.close()
        self._table.close()
        self._group.kill()
        timeline.merge(self._folder)

    def _reference(self) -> np.ndarray:
        """`(rows, 2)` log-probs under the starting model, of the rows that the run will see.

        They depend on nothing that changes: made once, block by block, and kept for a resumed run.
        """
        file = self._folder / "reference_logprobs.npy"
        if file.exists():
            return np.load(file)
        self._table.status("log-probs of the starting model")
        train, ranks = self._sets["train"], self._group.ranks
        beside = file.with_suffix(".part.npy")
        logprobs = np.full((len(train.uids), 2), np.nan, np.float32)
        if beside.exists():  # of a group that died, or a run that was killed
            with contextlib.suppress(ValueError, OSError):
                logprobs[:] = np.load(beside)
        used = {row for row, _ in self._order.take(0, self._total * self._per_step)}
        lacking = sorted(row for row in used if np.isnan(logprobs[row]).any())
        for shares in train.in_blocks(lacking, len(ranks)):
            calls = [
                rank.reference_logprobs.remote(share)
                for rank, share in zip(ranks, shares, strict=True)
            ]
            for share, found in zip(shares, self._group.gather(calls), strict=True):
                logprobs[share] = found
            with writing(beside), beside.with_suffix(".new").open("wb") as out:
                np.save(out, logprobs)
            beside.with_suffix(".new").replace(beside)
        beside.replace(file)
        return logprobs

    # ------------------------------------------------------------------- steps

    def _rows_of_step(self) -> list[int]:
        position = (self._step - 1) * self._per_step
        number = min(self._per_step, self._rows - position)
        return [row for row, _ in self._order.take(position, number)]

    def _one_step(self) -> dict[str, Any]:
        began = time.perf_counter()
        rows, train = self._rows_of_step(), self._sets["train"]
        lengths = [train.lengths[row] for row in rows]
        weights = sum(train.weights[row] for row in rows)
        by_weight = self._loss.regression or self._config.loss.normalize_by == "margins"
        # Without any weight the step's loss is 0, whatever it is divided by.
        totals = ((weights or 1.0) if by_weight else float(len(rows)), float(len(rows)))
        results = self._group.gather(
            [
                rank.step.remote(share, totals)
                for rank, share in zip(self._group.ranks, self._shares(rows), strict=True)
            ]
        )
        for line in self._updates.after(self._step, results[0]):
            self._table.message(line)
        seconds = time.perf_counter() - began
        return {
            "step": self._step,
            **results[0],
            "tokens_per_second": sum(lengths) / seconds,
            "phase/learn": seconds,
        }

    def _shares(self, rows: list[int]) -> list[list[int]]:
        """Each rank's rows of a step, balanced by tokens."""
        ranks = len(self._group.ranks)
        if self._config.model.frozen:
            # A row stays with its rank, which keeps the row's hidden states.
            return [[row for row in rows if row % ranks == rank] for rank in range(ranks)]
        shares = split_by_tokens([self._sets["train"].lengths[row] for row in rows], ranks)
        return [[rows[i] for i in share] for share in shares]

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
        rows, ranks = self._sets[name], self._group.ranks
        scores, lengths = np.zeros((len(rows.uids), 2)), np.zeros((len(rows.uids), 2))
        for shares in rows.in_blocks(range(len(rows.uids)), len(ranks)):
            calls = [
                rank.evaluate.remote(name, share) for rank, share in zip(ranks, shares, strict=True)
            ]
            for share, found in zip(shares, self._group.gather(calls), strict=True):
                scores[share], lengths[share] = found["scores"], found["lengths"]
        prompts = [uid.split(":")[0] for uid in rows.uids]
        margins = scores[:, 0] - scores[:, 1]
        interval = bootstrap_mean(margins > 0, prompts, seed=self._config.seed, bounds=SHARE)
        contests = [
            ScoredContest(s[:1], s[1:], n[:1], n[1:], "", prompt)
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
        steps = f"{self._step} of {self._total}, {self._per_step} rows per step"
        fingerprint = self._group.call(
            "save_model", str(target), card_facts(self._config, self._read, self._scores, steps)
        )[0]
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

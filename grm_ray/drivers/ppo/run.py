"""PPO: generate, score, evaluate, learn, send the weights on. The driver holds the ledger.

Rows stream: scorers and learner take batches while longer answers are still being written; only
the optimizer step waits for all. With `rollout.staleness` above 0 the next steps' answers are
written meanwhile, by weights that are so many updates old (`ahead`). The driver passes
references and reads per-row metadata; of the rows themselves it reads the text that goes into
`samples/`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from grm_ray.config.ppo import PpoJob
from grm_ray.data.records import Prompt
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.checks.jobs import look_up
from grm_ray.drivers.checks.plan import bundles_of
from grm_ray.drivers.checks.readable import check_readable, readers
from grm_ray.drivers.ppo.ahead import Ahead
from grm_ray.drivers.ppo.canaries import Canaries, Canary, read_canaries
from grm_ray.drivers.ppo.figures import row_figures, warnings
from grm_ray.drivers.ppo.guard import Watch
from grm_ray.drivers.ppo.held_out import HeldOut, change_of_true_reward, save_samples
from grm_ray.drivers.ppo.identity import identity_of
from grm_ray.drivers.ppo.prompts import encoded, read_prompts
from grm_ray.drivers.ppo.refused import RefusedLog
from grm_ray.drivers.ppo.rewards import PolicyRewards
from grm_ray.drivers.ppo.stream import Stream
from grm_ray.drivers.ppo.update import begin_update
from grm_ray.drivers.ppo.workers import PpoCast
from grm_ray.drivers.recovery import keep_going
from grm_ray.drivers.run_folder import claim, next_incarnation, open_run, saved_state
from grm_ray.drivers.states import States
from grm_ray.drivers.updates import Updates
from grm_ray.models import backbone
from grm_ray.models.checkpoint import check_reward_model
from grm_ray.objectives.kl import AdaptiveKL, FixedKL
from grm_ray.reporting.page import write_report
from grm_ray.rewards.pipeline import PROXY
from grm_ray.runtime import cluster, timeline
from grm_ray.runtime.ledger import LedgerFile
from grm_ray.runtime.snapshot import Snapshots
from grm_ray.runtime.terminal_table import PPO_COLUMNS, LiveTable
from grm_ray.runtime.tracking import Tracker
from grm_ray.training.policy_loss import ENGINE_GAP, PolicyLoss
from grm_ray.workers.encoder import start_encoder


def run(config: PpoJob, resume: bool = False) -> Path:
    """Train the policy; returns the path of the report.

    Raises:
        ConfigError: config, data or checkpoint is wrong; no worker was started.
    """
    check(config)
    claim(config)
    look_up(config.policy)
    quarantine = Quarantine()
    train, held_out = read_prompts(config, quarantine)
    asked = config.evaluation.canaries
    canaries = [] if asked is None else read_canaries(asked, quarantine)
    path = backbone.resolve(config.policy.path)
    check_readable(config, path, [*train, *held_out, *(c.prompt for c in canaries)])
    fingerprints = {
        key: check_reward_model(model)["fingerprint"] for key, model in readers(config).items()
    }
    identity = identity_of(config, path, [*train, *held_out], canaries, fingerprints)
    runs = Path(config.runs).expanduser()
    snapshots = Snapshots(runs / config.name / "checkpoints", config.checkpoint.keep)
    saved = saved_state(snapshots, identity, config, resume)
    wanted = bundles_of(config)
    with cluster.session(wanted):
        folder = open_run(config, resume)
        quarantine.write(folder / "quarantine.jsonl")
        with cluster.placement_group(wanted) as placed:
            table = LiveTable(PPO_COLUMNS)
            cast = PpoCast(
                config, folder, path, placed, wanted, list(fingerprints.values()), table.message
            )
            driver = PpoRun(config, folder, cast, snapshots, identity, table)
            try:
                driver.prepare(train, held_out, canaries, path, quarantine, saved)
                driver.train()
            finally:
                driver.close()
        return write_report(folder)


class PpoRun:
    """One run under way: its workers, and all that the driver itself knows of it."""

    def __init__(
        self,
        config: PpoJob,
        folder: Path,
        cast: PpoCast,
        snapshots: Snapshots,
        identity: dict[str, str],
        table: LiveTable,
    ) -> None:
        self._config, self._folder, self._cast = config, folder, cast
        self._snapshots, self._identity = snapshots, identity
        self._tracker = Tracker(folder, {"run": config.name, "job": "ppo"}, list(config.tracking))
        self._table = table
        self._ledger = LedgerFile(folder / "ledger.jsonl")
        kl = config.ppo.kl
        self._kl = (
            FixedKL(kl.coefficient)
            if kl.target is None
            else AdaptiveKL(kl.coefficient, kl.target, kl.horizon)
        )
        self._loss = PolicyLoss(config.ppo, config.rollout)
        self._stream = Stream(cast, config.timeout_s)
        made_from = [identity["policy model"], identity["reward model"]]
        self._rewards = PolicyRewards(
            config,
            cast,
            self._stream,
            made_from,
            table.message,
            lambda done, rows: table.status("answers to compare with", done, rows),
        )
        self._watch = Watch(config.guard)
        self._refused = RefusedLog(folder)
        self._learned = States(
            {"kl": self._kl, "rewards": self._rewards.pipeline, "watch": self._watch}
        )
        self._incarnation = next_incarnation(folder)
        self._updates = Updates("ppo.optimizer", config.ppo.optimizer.tokens_per_micro_batch)
        self._step = 0  # updates made
        self._begun = False
        self._best: float | None = None

    # ----------------------------------------------------------------- the run

    def prepare(
        self,
        train: list[Prompt],
        held_out: list[Prompt],
        canaries: list[Canary],
        path: str,
        quarantine: Quarantine,
        saved: tuple[Path, dict] | None,
    ) -> None:
        """Start every worker at once, tokenise meanwhile, restore a checkpoint."""
        config = self._config
        self._table.status("starting workers (vLLM takes about a minute)")
        data = config.data
        encoder = start_encoder(
            path, config.policy.trust_remote_code, str(self._folder / "logs" / "encoder.log")
        )
        sets = [train, held_out, *([[c.prompt for c in canaries]] if canaries else [])]
        tables = [encoder.prompts.remote(prompts, data.max_prompt_length) for prompts in sets]
        del encoder
        self._cast.begin()
        self._prompts, self._ids = encoded(tables[0], data, data.train, quarantine)
        held_out_prompts = encoded(tables[1], data, data.eval or data.train, quarantine)
        asked = None
        if config.evaluation.canaries is not None:
            fitting = encoded(tables[2], data, config.evaluation.canaries, quarantine)
            asked = Canaries(canaries, self._cast, self._stream, self._folder, *fitting)
        self._held_out = HeldOut(
            config, self._cast, self._stream, self._folder, *held_out_prompts, self._rewards, asked
        )
        quarantine.write(self._folder / "quarantine.jsonl")
        shown = ", ".join(f"{n} {reason}" for reason, n in quarantine.counts().items())
        self._table.message(
            f"{len(self._ids)} training prompts, {len(held_out_prompts[1])} held out"
            + (f"; left out: {shown} (quarantine.jsonl)" if shown else "")
        )
        self._ahead = Ahead(
            config, self._cast, self._stream, self._prompts, self._ids, self._incarnation
        )
        self._cast.wait()
        self._saved, self._to_compare = saved, (self._prompts, self._ids, *held_out_prompts)

    def train(self) -> None:
        """All steps, and the policy saved; learner ranks that die are replaced."""
        keep_going(self._train, self._recover, lambda: self._step, self._table.message)

    def _begin(self) -> None:
        """What rewards are compared with, and the checkpoint to go on from."""
        self._rewards.prepare(*self._to_compare)
        self._at_start = self._learned.state_dict()
        if self._saved is not None:
            self._restore(*self._saved, self._incarnation)
        self._begun = True

    def _train(self) -> None:
        """The loop over steps."""
        config = self._config
        if not self._begun:
            self._begin()
        if self._step == 0:
            metrics = {"step": 0, **self._evaluate("before")}
            self._look(metrics)
            if config.guard is not None and config.guard.action == "roll_back":
                self._keep_if_best(metrics)
            self._tracker.log(metrics)
            self._table.row(metrics)
        while self._step < config.ppo.steps and not self._watch.stopped:
            with self._cast.timeline.span("step", number=self._step + 1):
                metrics = self._one_step()
            every, last = config.evaluation.every, self._step == config.ppo.steps
            if last or (every and self._step % every == 0):
                metrics |= self._evaluate("after" if last else f"held-out-{self._step:05d}")
                self._keep_if_best(metrics)
                self._look(metrics)
                if self._watch.stopped and not last:
                    samples = self._folder / "samples"
                    shutil.copy(
                        samples / f"held-out-{self._step:05d}.parquet", samples / "after.parquet"
                    )
            metrics["workers_replaced"] = self._cast.replaced  # those of the evaluation too
            self._tracker.log(metrics)
            self._table.row(metrics)
            if config.checkpoint.every and self._step % config.checkpoint.every == 0:
                self._table.status("checkpoint")
                self._snapshots.attempt(self._step, self._snapshot, self._table.message)
        self._finish()

    def _finish(self) -> None:
        """Save the policy, unless the best was saved before; say what became of the true reward."""
        if self._best is None:
            self._save()
        change = change_of_true_reward(self._folder)
        if change is not None:
            last = "" if self._best is None else " (of the last policy, not of the one saved)"
            self._table.message(
                f"true reward on held-out prompts, after minus before: {change.mean:+.3f} "
                f"(95 % interval {change.low:+.3f} to {change.high:+.3f}){last}"
            )

    def close(self) -> None:
        self._tracker.close()
        self._table.close()
        self._cast.close()
        timeline.merge(self._folder)

    # ---------------------------------------------------------------- one step

    def _one_step(self) -> dict[str, Any]:
        number, since, synced = self._step + 1, time.perf_counter(), self._ahead.sync_seconds
        busy = self._stream.learners_busy_s
        gathering, prompts = self._ahead.take(number)
        self._stream.gather(gathering, self._progress(number, len(prompts)), self._ahead.advance)
        step = gathering.step
        told = self._refused.note(step, f"step-{number:05d}")
        if told is not None:
            self._table.message(told)
        columns = self._rewards.of_step(step, prompts)
        proxy, rewards = columns[PROXY], list(columns.values())[-1]
        penalty = self._kl.coefficient * self._watch.factor * self._penalty_unit()
        before_learning = time.perf_counter()
        self._table.status(f"step {number}: learning")
        self._cast.learner_works(True)
        learning = begin_update(
            self._config, self._cast.learners, self._loss, step, rewards, prompts, penalty, number
        )
        self._ahead.issued(number)
        self._stream.wait(learning, self._ahead.advance)
        learned = self._cast.learners.gather(learning)[0]
        self._cast.learner_works(False)
        for line in self._updates.after(number, learned):
            self._table.message(line)
        gap = step.column("gap").sum() / step.column("length").sum()
        learn_seconds = time.perf_counter() - before_learning
        self._step = number
        self._table.status("sending weights")
        self._ahead.updated(number)
        ended = time.perf_counter()
        named = {"reward": proxy} | {n: x for n, x in columns.items() if n != PROXY}
        save_samples(self._folder, step, f"step-{self._step:05d}", named, self._rewards.members)
        self._ledger.append(self._step, step.ledger.uids)  # what it names has its samples
        kl = float(step.column("kl").mean())
        if number > self._config.ppo.critic_warmup:  # before, the policy could not have moved
            self._kl.update(kl, len(prompts))
        metrics = {
            "step": self._step,
            **row_figures(step, proxy, rewards, ended - since),
            **self._rewards.figures(step, columns),
            **self._cast.figures(),
            "learner/busy_share": (self._stream.learners_busy_s - busy) / (ended - since),
            "objective/kl": kl,
            "objective/kl_coefficient": penalty,
            "engine_gap": learned.pop(ENGINE_GAP, float(gap)),
            "policy_version": [self._ahead.version.incarnation, self._ahead.version.step],
            "staleness": number - 1 - float(step.column("version").mean()),
            **step.phases(since),
            "phase/learn": learn_seconds,
            "phase/sync": self._ahead.sync_seconds - synced,
            **learned,
        }
        phases = sum(value for key, value in metrics.items() if key.startswith("phase/"))
        metrics["phase/other"] = max(0.0, ended - since - phases)
        for line in warnings(metrics):
            self._table.message(line)
        return metrics

    def _progress(self, number: int, rows: int) -> Callable[[int], None]:
        return lambda done: self._table.status(f"step {number}: rows scored", done, rows)

    def _penalty_unit(self) -> float:
        """What the penalty's coefficient is in units of: chi squared's, the advantages' spread."""
        chi_squared = self._config.ppo.kl.estimator == "sqrt_chi_squared"
        return self._rewards.pipeline.spread if chi_squared and self._loss.keeps_unit else 1.0

    def _evaluate(self, name: str) -> dict[str, Any]:
        """Figures of answers to the held-out prompts, by the newest weights."""
        self._ahead.settle()
        self._table.status("answering held-out prompts")
        return self._held_out.evaluate(name, self._ahead.version)

    def _look(self, metrics: dict[str, Any]) -> None:
        """Have the guard look at an evaluation."""
        said = self._watch.look(metrics, self._held_out.values)
        if said is not None:
            self._table.message(f"step {self._step}: {said}")

    # ----------------------------------------------------------- checkpoints

    def _keep_if_best(self, metrics: dict[str, Any]) -> None:
        best_by = self._config.checkpoint.best_by
        if best_by is None:
            return
        value = metrics.get(f"eval/{best_by}")
        if value is None:
            said = f"no held-out answer has a {best_by}, so this policy cannot be the best"
            self._table.message(f"step {self._step}: checkpoint.best_by: {said}")
        elif self._best is None or value > self._best:
            self._best = value
            self._save()

    def _save(self) -> None:
        target = self._folder / "model"
        self._table.status("saving")
        self._cast.learners.call("save_model", str(target), self._card())
        self._table.message(f"policy {target} (step {self._step})")

    def _snapshot(self, part: Path) -> dict[str, Any]:
        hashes = self._cast.learners.call("save", str(part / "learner"), self._learned.state_dict())
        return {
            "identity": self._identity,
            "config": self._config.model_dump(mode="json"),
            "hashes": hashes,
            "best": self._best,
        }

    def _restore(self, path: Path, state: dict[str, Any], incarnation: int) -> None:
        """Go on after the checkpoint's step."""
        with self._snapshots.reading(path):
            extra = self._cast.learners.call("load", str(path / "learner"))[0]
        if state["config"]["checkpoint"].get("best_by") == self._config.checkpoint.best_by:
            self._best = state.get("best")  # of another figure it would say nothing
        self._go_on_after(state["step"], extra, incarnation)

    def _recover(self) -> None:
        """New learner ranks, brought to the last checkpoint, or to the start of the run."""
        self._table.status("starting new learners")
        self._stream.forget()
        self._cast.revive_learners()
        if not self._begun:
            return  # `_begin` comes again
        self._incarnation = next_incarnation(self._folder)
        saved = self._snapshots.latest()
        if saved is None:
            self._best = None
            self._go_on_after(0, self._at_start, self._incarnation)
        else:
            self._restore(*saved, self._incarnation)

    def _go_on_after(self, step: int, state: dict[str, Any], incarnation: int) -> None:
        """The driver as it was after `step`; the learner is so already."""
        self._learned.load_state_dict(state)
        self._step = step
        self._ledger.cut_after(step)
        self._refused.cut_after(step)
        self._tracker.resume(step or -1)  # from the start the first evaluation is made again
        self._ahead.restore(step, incarnation)
        self._table.message(f"resumed after step {step}, weights {self._ahead.version}")

    def _card(self) -> str:
        config = self._config
        models = ", ".join(f"`{path}`" for path in config.reward.models.values())
        return (
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
            f"# {config.name}\n\n`{config.policy.path}` after {self._step} PPO steps against "
            f"{models} (fingerprint {self._identity['reward model'][:12]}), by grm_ray.\n"
        )

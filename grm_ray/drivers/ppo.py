"""PPO: generate, score, evaluate, learn, send the weights on. The driver holds the ledger.

Rows stream: scorers and learner take batches while longer answers are still being written; only
the optimizer step waits for all. The driver passes references and reads per-row metadata; of the
rows themselves it reads the text that goes into `samples/`.
"""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from grm_ray.config.load import ConfigError
from grm_ray.config.schema import PpoJob, Source
from grm_ray.data import sources
from grm_ray.data.order import EpochOrder
from grm_ray.data.packing import split_by_tokens
from grm_ray.data.sources import Prompt, Quarantine
from grm_ray.drivers.checks import check, roles
from grm_ray.drivers.ppo_workers import PpoCast
from grm_ray.drivers.run_folder import next_incarnation, open_run, saved_state
from grm_ray.models import backbone
from grm_ray.models.checkpoint import check_reward_model, model_identity
from grm_ray.objectives.kl import AdaptiveKL, FixedKL
from grm_ray.reporting.page import write_report
from grm_ray.rewards.pipeline import RewardPipeline
from grm_ray.runtime import cluster
from grm_ray.runtime.ledger import LedgerFile, StepLedger, seed, uid
from grm_ray.runtime.live import PPO_COLUMNS, LiveTable
from grm_ray.runtime.placement import bundles
from grm_ray.runtime.pool import Event, Pool, PoolFailed, Work
from grm_ray.runtime.snapshot import Snapshots
from grm_ray.runtime.tracking import Tracker
from grm_ray.runtime.weights import Version
from grm_ray.study.intervals import bootstrap_mean, paired_difference

# Mean difference of the engine's and the learner's log-prob of a token; rounding in bfloat16 gives
# a few hundredths.
GAP_TO_WARN = 0.2

SCORED, EVALUATED, GENERATED = "scored", "evaluated", "generated"


def run(config: PpoJob, resume: bool = False) -> Path:
    """Train the policy; returns the path of the report.

    Raises:
        ConfigError: config, data or checkpoint is wrong; no worker was started.
    """
    check(config)
    quarantine = Quarantine()
    train, held_out = read_prompts(config, quarantine)
    path = backbone.resolve(config.policy.path)
    reward = check_reward_model(Path(config.reward.path).expanduser())
    identity = {
        "policy model": model_identity(path),
        "reward model": reward["fingerprint"],
        "set of prompts": _fingerprint([*train, *held_out]),
    }
    runs = Path(config.runs).expanduser()
    snapshots = Snapshots(runs / config.name / "checkpoints", config.checkpoint.keep)
    saved = saved_state(snapshots, identity, config, resume)
    wanted = bundles(roles(config))
    with cluster.session(wanted):
        folder = open_run(config, resume)
        quarantine.write(folder / "quarantine.jsonl")
        with cluster.placement_group(wanted) as placed:
            table = LiveTable(PPO_COLUMNS)
            cast = PpoCast(
                config, folder, path, placed, wanted, reward["fingerprint"], table.message
            )
            driver = _Driver(config, folder, cast, snapshots, identity, table)
            try:
                driver.prepare(train, held_out, path, quarantine, saved)
                driver.train()
                driver.finish()
            finally:
                driver.close()
        return write_report(folder)


def read_prompts(config: PpoJob, quarantine: Quarantine) -> tuple[list[Prompt], list[Prompt]]:
    """Training and held-out prompts, with none in both."""
    data = config.data
    train = sources.prompts(data.train, quarantine)
    if data.train.shuffle:
        order = np.random.default_rng([config.seed, 1]).permutation(len(train))
        train = [train[i] for i in order]
    if data.eval is not None:
        held_out = sources.prompts(data.eval, quarantine)[: config.evaluation.prompts]
    else:
        held_out = train[-config.evaluation.prompts :]
    out = {prompt.prompt_id for prompt in held_out}
    train = [prompt for prompt in train if prompt.prompt_id not in out][: data.train.limit]
    if not train:
        raise ConfigError(
            f"{data.train.path}: no training prompt is left after {len(held_out)} held-out ones"
        )
    return train, held_out


def _fingerprint(prompts: list[Prompt]) -> str:
    return hashlib.sha256(" ".join(p.prompt_id for p in prompts).encode()).hexdigest()


@dataclass
class _Step:
    """What one step has gathered: batches by reference, scalars by uid."""

    ledger: StepLedger
    evaluate: bool
    began: float = field(default_factory=time.perf_counter)
    at: dict[str, float] = field(default_factory=dict)
    rollouts: list[Any] = field(default_factory=list)
    evaluations: list[Any] = field(default_factory=list)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)

    def note(self, stage: str, uids: list[str]) -> list[str]:
        fresh = self.ledger.record(stage, uids)
        if not self.ledger.lacking(stage):
            self.at.setdefault(stage, time.perf_counter() - self.began)
        return fresh

    def column(self, name: str) -> np.ndarray:
        return np.array([self.rows[u][name] for u in self.ledger.uids], dtype=float)


class _Driver:
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
        reward = config.reward
        self._rewards = RewardPipeline(reward.normalize, reward.clip, reward.missing_eos_penalty)
        self._version = Version(next_incarnation(folder), 0)
        self._step = 0

    # ----------------------------------------------------------------- the run

    def prepare(
        self,
        train: list[Prompt],
        held_out: list[Prompt],
        path: str,
        quarantine: Quarantine,
        saved: tuple[Path, dict] | None,
    ) -> None:
        """Start every worker at once, tokenise meanwhile, restore a checkpoint."""
        config = self._config
        self._table.status("starting workers (vLLM takes about a minute)")
        data = config.data
        tables = [self._encode(prompts, path) for prompts in (train, held_out)]
        self._cast.begin()
        self._prompts, self._ids = self._encoded(tables[0], data.train, quarantine)
        self._held_out, self._held_out_ids = self._encoded(
            tables[1], data.eval or data.train, quarantine
        )
        quarantine.write(self._folder / "quarantine.jsonl")
        shown = ", ".join(f"{n} {reason}" for reason, n in quarantine.counts().items())
        self._table.message(
            f"{len(self._ids)} training prompts, {len(self._held_out_ids)} held out"
            + (f"; left out: {shown} (quarantine.jsonl)" if shown else "")
        )
        self._order = EpochOrder(len(self._ids), config.seed, config.data.train.shuffle)
        self._cast.wait()
        if saved is not None:
            self._restore(*saved)

    def train(self) -> None:
        """The loop over steps."""
        config = self._config
        if self._step == 0:
            metrics = {"step": 0, **self._evaluate("before")}
            self._tracker.log(metrics)
            self._table.row(metrics)
        while self._step < config.ppo.steps:
            self._step += 1
            metrics = self._one_step()
            every = config.evaluation.every
            if self._step == config.ppo.steps:
                metrics |= self._evaluate("after")
            elif every and self._step % every == 0:
                metrics |= self._evaluate(f"held-out-{self._step:05d}")
            self._tracker.log(metrics)
            self._table.row(metrics)
            if config.checkpoint.every and self._step % config.checkpoint.every == 0:
                self._table.status("checkpoint")
                self._snapshots.write(self._step, self._snapshot)

    def finish(self) -> None:
        """Save the policy; say what became of the true reward."""
        target = self._folder / "model"
        self._table.status("saving")
        self._cast.learners.call("save_model", str(target), self._card())
        self._table.message(f"policy {target}")
        before, after = (self._folder / "samples" / f"{n}.parquet" for n in ("before", "after"))
        if self._config.reward.true_reward and before.exists() and after.exists():
            difference = paired_difference(
                *(true_rewards(path) for path in (before, after)), seed=self._config.seed
            )
            self._table.message(
                f"true reward on held-out prompts, after minus before: {difference.mean:+.3f} "
                f"(95 % interval {difference.low:+.3f} to {difference.high:+.3f})"
            )

    def close(self) -> None:
        self._tracker.close()
        self._table.close()
        self._cast.close()

    # ---------------------------------------------------------------- one step

    def _one_step(self) -> dict[str, Any]:
        config = self._config
        rollout = config.rollout
        position = (self._step - 1) * rollout.prompts_per_step
        rows = [
            (row, uid(self._ids[row], epoch, sample))
            for row, epoch in self._order.take(position, rollout.prompts_per_step)
            for sample in range(rollout.samples_per_prompt)
        ]
        step = self._gather(self._prompts, rows, evaluate=True)
        rewards = self._rewards(step.column("score"), step.column("finished"))
        before_learning = time.perf_counter()
        learned = self._learn(step, rewards, [row for row, _ in rows])
        before_sync = time.perf_counter()
        self._version = Version(self._version.incarnation, self._step)
        self._table.status("sending weights")
        self._cast.send_weights(self._version)
        ended = time.perf_counter()
        self._ledger.append(self._step, step.ledger.uids)
        self._save_samples(step, f"step-{self._step:05d}")
        kl = float(step.column("kl").mean())
        self._kl.update(kl, len(rows))
        lengths = step.column("length")
        seconds = ended - step.began
        metrics = {
            "step": self._step,
            "reward": float(step.column("score").mean()),
            "reward_std": float(step.column("score").std()),
            "reward_normalized": float(rewards.mean()),
            "true_reward": _mean_or_none(step, "true_reward"),
            "objective/kl": kl,
            "objective/kl_coefficient": self._kl.coefficient,
            "response_length": float(lengths.mean()),
            "finished": float(step.column("finished").mean()),
            "policy/entropy": float(step.column("entropy").sum() / lengths.sum()),
            "engine_gap": float(step.column("gap").sum() / lengths.sum()),
            "tokens_per_second": float(lengths.sum()) / seconds,
            "policy_version": [self._version.incarnation, self._version.step],
            "workers_replaced": self._cast.replaced,
            **self._phases(step),
            "phase/learn": before_sync - before_learning,
            "phase/sync": ended - before_sync,
            **learned,
        }
        if metrics["engine_gap"] > GAP_TO_WARN:
            self._table.message(
                f"step {self._step}: engine and learner differ by {metrics['engine_gap']:.2f} nats "
                "a token; the two do not run the same model"
            )
        metrics["phase/other"] = max(
            0.0, seconds - sum(v for k, v in metrics.items() if k.startswith("phase/"))
        )
        return metrics

    def _gather(self, prompts: Any, rows: list[tuple[int, str]], evaluate: bool) -> _Step:
        """Have every row generated, scored and (to learn from it) evaluated, whatever dies."""
        needs = {GENERATED, SCORED} | ({EVALUATED} if evaluate else set())
        step = _Step(StepLedger([name for _, name in rows], frozenset(needs)), evaluate)
        row_of = {name: row for row, name in rows}
        self._request(prompts, row_of, step, [name for _, name in rows])
        pending_evaluations: dict[Any, Any] = {}
        heard = time.monotonic()
        while not step.ledger.complete:
            done = len(rows) - len(step.ledger.lacking(SCORED))
            self._table.status(f"step {self._step}: rows scored", done, len(rows))
            rollouts, scorers = self._cast.rollouts, self._cast.scorers
            waiting = [*rollouts.waitables(), *scorers.waitables(), *pending_evaluations]
            done_refs = ray.wait(waiting, num_returns=1, timeout=5, fetch_local=False)[0]
            if done_refs:
                heard = time.monotonic()
            elif time.monotonic() - heard > self._config.timeout_s:
                lacking = {need: len(step.ledger.lacking(need)) for need in sorted(needs)}
                raise PoolFailed(
                    f"no worker answered for {self._config.timeout_s} s; rows lacking: {lacking}"
                )
            for ref in done_refs:
                if rollouts.owns(ref):
                    for event in rollouts.handle(ref):
                        self._rollout_event(event, prompts, row_of, step, pending_evaluations)
                elif scorers.owns(ref):
                    for event in scorers.handle(ref):
                        self._score_event(event, step)
                else:
                    self._evaluated(pending_evaluations.pop(ref), ref, step)
        return step

    def _request(self, prompts: Any, row_of: dict[str, int], step: _Step, uids: list[str]) -> None:
        """Share `uids` out over the rollout workers, those of one prompt to one worker."""
        pool: Pool = self._cast.rollouts
        by_prompt: dict[int, list[str]] = {}
        for name in uids:
            by_prompt.setdefault(row_of[name], []).append(name)
        shares = min(len(pool.handles), len(by_prompt))
        for share in np.array_split(np.array(list(by_prompt)), shares):
            names = [name for row in share.tolist() for name in by_prompt[row]]
            wanted = [(row_of[u], u, seed(u, self._config.seed)) for u in names]
            pool.submit(
                Work(
                    lambda worker, wanted=wanted: worker.generate.options(
                        num_returns="streaming"
                    ).remote(prompts, wanted),
                    names,
                )
            )

    def _rollout_event(
        self,
        event: Event,
        prompts: Any,
        row_of: dict[str, int],
        step: _Step,
        pending_evaluations: dict[Any, Any],
    ) -> None:
        if event.kind == "lost":
            lacking = set(step.ledger.lacking(GENERATED))
            again = [u for u in event.work.payload if u in lacking]
            if again:
                self._request(prompts, row_of, step, again)
        elif event.kind == "item":
            batch, metadata = event.value
            if metadata["versions"] != [str(self._version)]:
                raise RuntimeError(
                    f"rows written by weights {', '.join(metadata['versions'])}, "
                    f"the policy is at {self._version}"
                )
            fresh = set(step.note(GENERATED, metadata["uids"]))
            if not fresh:
                return
            step.rollouts.append(batch)
            for i, name in enumerate(metadata["uids"]):
                if name in fresh:
                    step.rows[name] = {
                        "length": metadata["lengths"][i],
                        "tokens": metadata["tokens"][i],
                        "finished": metadata["finished"][i],
                    }
            self._submit_score(batch)
            if step.evaluate:
                table, info = self._cast.evaluate(batch, sum(metadata["tokens"]))
                pending_evaluations[info] = table

    def _submit_score(self, batch: Any) -> None:
        self._cast.scorers.submit(Work(lambda worker: worker.score.remote(batch), batch))

    def _score_event(self, event: Event, step: _Step) -> None:
        if event.kind == "lost":
            self._submit_score(event.work.payload)
            return
        table: pa.Table = event.value
        columns = {n: table[n].to_pylist() for n in ("uid", "score", "true_reward")}
        fresh = set(step.note(SCORED, columns["uid"]))
        for name, score, true in zip(*columns.values(), strict=True):
            if name in fresh:
                step.rows[name] |= {"score": score, "true_reward": true}

    def _evaluated(self, table: Any, info_ref: Any, step: _Step) -> None:
        info = self._cast.learners.gather([info_ref])[0]
        fresh = set(step.note(EVALUATED, info["uids"]))
        step.evaluations.append(table)
        for i, name in enumerate(info["uids"]):
            if name in fresh:
                step.rows[name] |= {key: info[key][i] for key in ("kl", "entropy", "gap")}

    def _learn(self, step: _Step, rewards: np.ndarray, prompts: list[int]) -> dict[str, float]:
        """Split the rows over the ranks by tokens and let them learn in lockstep.

        Rows of one prompt go to one rank, which computes the prompt once for all of them.
        """
        self._table.status(f"step {self._step}: learning")
        uids, ranks = step.ledger.uids, self._cast.learners.ranks
        tokens, lengths = step.column("tokens"), step.column("length")
        groups: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            groups.setdefault(prompt, []).append(i)
        items = list(groups.values())
        if len(items) < len(ranks):
            items = [[i] for i in range(len(uids))]
        sizes = [tokens[item[0]] - lengths[item[0]] + lengths[item].sum() for item in items]
        shares = split_by_tokens([int(size) for size in sizes], len(ranks))
        calls = [
            rank.learn.remote(
                step.rollouts,
                step.evaluations,
                {uids[i]: float(rewards[i]) for item in share for i in items[item]},
                self._kl.coefficient,
                self._step,
            )
            for rank, share in zip(ranks, shares, strict=True)
        ]
        return self._cast.learners.gather(calls)[0]

    @staticmethod
    def _phases(step: _Step) -> dict[str, float]:
        """Seconds until all was generated, then what scoring and evaluation took on top."""
        generated = step.at[GENERATED]
        scored = max(generated, step.at[SCORED])
        evaluated = max(scored, step.at.get(EVALUATED, 0.0))
        return {
            "phase/generate": generated,
            "phase/score": scored - generated,
            "phase/evaluate": evaluated - scored,
        }

    # ------------------------------------------------------------- held-out

    def _evaluate(self, name: str) -> dict[str, Any]:
        """One answer to each held-out prompt, with the same seeds every time."""
        self._table.status("answering held-out prompts")
        rows = [(row, uid(prompt, 0, 0)) for row, prompt in enumerate(self._held_out_ids)]
        step = self._gather(self._held_out, rows, evaluate=False)
        self._save_samples(step, name)
        made = {
            "eval/reward": float(step.column("score").mean()),
            "eval/length": float(step.column("length").mean()),
            "eval/finished": float(step.column("finished").mean()),
        }
        if self._config.reward.true_reward:
            interval = bootstrap_mean(step.column("true_reward"), seed=self._config.seed)
            made |= {
                "eval/true_reward": interval.mean,
                "eval/true_reward_low": interval.low,
                "eval/true_reward_high": interval.high,
            }
        return made

    def _save_samples(self, step: _Step, name: str) -> None:
        """What was said and how it was scored, read from the stages' references."""
        said = pa.concat_tables(ray.get(step.rollouts)).select(["uid", "prompt", "response"])
        uids = said["uid"].to_pylist()
        for column, kind in (("score", "reward"), ("true_reward", "true_reward")):
            values = pa.array([step.rows[u][column] for u in uids], pa.float32())
            said = said.append_column(kind, values)
        lengths = pa.array([step.rows[u]["length"] for u in uids], pa.int32())
        pq.write_table(
            said.append_column("length", lengths), self._folder / "samples" / f"{name}.parquet"
        )

    # ----------------------------------------------------------- checkpoints

    def _snapshot(self, part: Path) -> dict[str, Any]:
        extra = {"kl": self._kl.state_dict(), "rewards": self._rewards.state_dict()}
        hashes = self._cast.learners.call("save", str(part / "learner"), extra)
        return {
            "identity": self._identity,
            "config": self._config.model_dump(mode="json"),
            "hashes": hashes,
        }

    def _restore(self, path: Path, state: dict[str, Any]) -> None:
        """Go on after the checkpoint's step, under the next incarnation."""
        extra = self._cast.learners.call("load", str(path / "learner"))[0]
        self._kl.load_state_dict(extra["kl"])
        self._rewards.load_state_dict(extra["rewards"])
        self._step = state["step"]
        self._version = Version(self._version.incarnation, self._step)
        self._ledger.cut_after(self._step)
        self._tracker.resume(self._step)
        self._cast.send_weights(self._version)
        self._table.message(f"resumed after step {self._step}, weights {self._version}")

    def _encode(self, prompts: list[Prompt], path: str) -> tuple[Any, Any]:
        """References to the table of tokenised prompts and to its metadata."""
        from grm_ray.workers.encoder import prompts_table

        config = self._config
        return tuple(
            prompts_table.remote(
                prompts,
                path,
                config.policy.trust_remote_code,
                config.data.max_prompt_length,
                str(self._folder / "logs" / "encoder.log"),
            )
        )

    def _encoded(
        self, refs: tuple[Any, Any], source: Source, quarantine: Quarantine
    ) -> tuple[Any, list]:
        table, info_ref = refs
        config = self._config
        info = ray.get(info_ref)
        for prompt_id in info["too_long"]:
            quarantine.add(source.path, 0, "longer than data.max_prompt_length", prompt_id)
        if not info["prompt_ids"]:
            raise ConfigError(
                f"no prompt fits data.max_prompt_length: {config.data.max_prompt_length} tokens"
            )
        return table, info["prompt_ids"]

    def _card(self) -> str:
        config = self._config
        return (
            "---\nlibrary_name: transformers\npipeline_tag: text-generation\n---\n"
            f"# {config.name}\n\n`{config.policy.path}` after {config.ppo.steps} PPO steps against "
            f"the reward model `{config.reward.path}` "
            f"(fingerprint {self._identity['reward model'][:12]}), by grm_ray.\n"
        )


def _mean_or_none(step: _Step, name: str) -> float | None:
    values = [row[name] for row in step.rows.values()]
    return None if any(v is None for v in values) else float(np.mean(values))


def true_rewards(path: Path) -> np.ndarray:
    """True rewards in the order of the uids, so that two files pair up."""
    table = pq.read_table(path, columns=["uid", "true_reward"]).sort_by("uid")
    return table["true_reward"].to_numpy()

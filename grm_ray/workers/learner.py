"""One rank of the PPO learner: policy, critic and reference on one backbone, under ZeRO."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from grm_ray.config.ppo import PpoJob
from grm_ray.data.packing import Group, Packed, group_tokens, micro_batches, pack, share_prompts
from grm_ray.data.tables import EVALUATIONS, flat, nested, select
from grm_ray.models.backbone import load_causal_lm, load_tokenizer, resolve_dtype, trained_weights
from grm_ray.models.checkpoint import save_causal_lm
from grm_ray.models.policy import Policy, Reference
from grm_ray.objectives.advantages import gae, masked_moments, whiten
from grm_ray.objectives.kl import kl_rewards
from grm_ray.objectives.policy import clipped_policy_loss, clipped_value_loss
from grm_ray.runtime import logs, priority, weights
from grm_ray.runtime.weights import Version, WeightUpdate
from grm_ray.training.engine import ZeroEngine, address, join_group


@ray.remote
class Learner:
    """Evaluates rows as they are written, then learns from the step's rows at once."""

    def __init__(
        self, config: dict[str, Any], rank: int, world: int, model_path: str, threads: int, log: str
    ) -> None:
        logs.to_file(Path(log))
        priority.yield_to_engines()
        torch.set_num_threads(threads)
        self._config = PpoJob(**config)
        self._rank, self._world = rank, world
        self._path = model_path
        self._files = weights.WeightFiles()
        self._update: WeightUpdate | None = None

    def address(self) -> tuple[str, int]:
        """This rank's machine and a free port there."""
        return address()

    def setup(self, meeting: tuple[str, int, int]) -> int:
        """Load policy and reference, join the group, build the engine; returns the process id."""
        config = self._config
        weights.remove_stale()
        join_group(self._rank, self._world, *meeting)
        torch.manual_seed(config.seed)  # equal adapters and value heads on every rank
        np.random.seed(config.seed)
        policy = Policy(load_causal_lm(config.policy, self._path), config.value_head)
        self._reference = Reference(policy)
        updates = config.ppo.steps * config.ppo.epochs * config.ppo.minibatches
        self._engine = ZeroEngine(
            policy, config.ppo.optimizer, resolve_dtype(config.policy.dtype), updates
        )
        self._reference.to(self._engine.device)
        torch.manual_seed(config.seed + 1000 * (self._rank + 1))
        return os.getpid()

    # ------------------------------------------------------- before the update

    @torch.no_grad()
    def evaluate(self, rollouts: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """`EVALUATIONS` of a `ROLLOUTS` batch, and per-row metadata (KL, gap to the engine)."""
        engine, module = self._engine, self._engine.module
        module.train()  # no dropout is active in a `Policy`; checkpointing needs train mode
        rows = _Rows(rollouts)
        logp, ref, values = (np.zeros(rows.answer_at[-1], np.float32) for _ in range(3))
        groups = rows.groups(self._budget)
        for batch in micro_batches([rows.tokens(g) for g in groups], self._budget):
            chosen = [groups[i] for i in batch]
            packed = rows.packed(chosen).to(engine.device)
            got_logp, got_values = engine(packed, self._temperature)
            got_ref = self._reference.logprobs(packed, self._temperature)
            at = rows.answer_positions(chosen)
            logp[at] = got_logp.float().numpy(force=True)
            values[at] = got_values.float().numpy(force=True)
            ref[at] = got_ref.float().numpy(force=True)
        engine_logp, _ = flat(rollouts, "engine_logprobs")
        table = pa.table(
            [rollouts["uid"], *(nested(x, rows.answer_at) for x in (logp, ref, values))],
            schema=EVALUATIONS,
        )
        starts = rows.answer_at[:-1]
        return table, {
            "uids": rollouts["uid"].to_pylist(),
            "kl": np.add.reduceat(logp - ref, starts).tolist(),
            "entropy": (-np.add.reduceat(logp, starts)).tolist(),
            "gap": np.add.reduceat(np.abs(logp - engine_logp), starts).tolist(),
        }

    # --------------------------------------------------------------- the update

    def learn(
        self,
        rollout_refs: list[Any],
        evaluation_refs: list[Any],
        rewards: dict[str, float],
        kl_coefficient: float,
        step: int,
    ) -> dict[str, float]:
        """PPO epochs over this rank's rows.

        Args:
            rollout_refs, evaluation_refs: batches that contain the rows of `rewards`.
            rewards: uid -> the row's final scalar reward, for the rows of this rank.
            kl_coefficient: weight of the KL penalty in the per-token reward.
            step: names the random order of minibatches, so that a resumed run repeats it.
        """
        config = self._config.ppo
        self._engine.module.train()
        rows, old = self._join(rollout_refs, evaluation_refs, list(rewards))
        advantages, returns = self._advantages(rows, old, list(rewards.values()), kl_coefficient)
        sums = np.zeros(6)
        made: dict[str, float] = {}
        for epoch in range(config.epochs):
            generator = np.random.default_rng([self._config.seed, step, epoch, self._rank])
            groups = rows.groups(self._budget)
            if len(groups) < config.minibatches:  # too few prompts: a minibatch would be empty
                groups = [[row] for group in groups for row in group]
            order = generator.permutation(len(groups))
            for part in np.array_split(order, config.minibatches):
                chosen = [groups[i] for i in part]
                made = self._minibatch(rows, chosen, old, advantages, returns, sums)
        policy, value, clipped, approx_kl, explained, tokens = self._engine.all_reduce(sums)
        tokens = max(tokens, 1.0)
        return {
            "loss/policy": policy / tokens,
            "loss/value": value / tokens,
            "policy/clip_fraction": clipped / tokens,
            "policy/approx_kl": approx_kl / tokens,
            "value/error": explained / tokens,
            **made,
        }

    def _join(
        self, rollout_refs: list[Any], evaluation_refs: list[Any], uids: list[str]
    ) -> tuple[_Rows, dict[str, torch.Tensor]]:
        """The rows of `uids` from both stages, joined by uid."""
        if not uids:
            return _Rows(None), {n: torch.zeros(0) for n in ("logprobs", "ref_logprobs", "values")}
        rollouts = select(pa.concat_tables(ray.get(rollout_refs)), uids)
        evaluations = select(pa.concat_tables(ray.get(evaluation_refs)), uids)
        old = {
            name: torch.from_numpy(flat(evaluations, name)[0].copy())
            for name in ("logprobs", "ref_logprobs", "values")
        }
        return _Rows(rollouts), old

    def _advantages(
        self, rows: _Rows, old: dict[str, torch.Tensor], rewards: list[float], coefficient: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        config = self._config.ppo
        offsets = torch.from_numpy(rows.answer_at)
        per_token = kl_rewards(
            torch.tensor(rewards, dtype=torch.float32),
            old["logprobs"],
            old["ref_logprobs"],
            offsets,
            coefficient,
            config.kl.estimator,
        )
        advantages, returns = gae(per_token, old["values"], offsets, config.gamma, config.lam)
        if config.whiten_advantages:
            count, total, square = self._engine.all_reduce(
                [float(x) for x in masked_moments(advantages)]
            )
            if count > 1:
                mean = total / count
                advantages = whiten(advantages, mean, square / count - mean * mean)
        return advantages, returns

    def _minibatch(
        self,
        rows: _Rows,
        part: list[list[int]],
        old: dict[str, torch.Tensor],
        advantages: torch.Tensor,
        returns: torch.Tensor,
        sums: np.ndarray,
    ) -> dict[str, float]:
        """One optimizer step on `part` of this rank's groups of rows."""
        config, engine = self._config.ppo, self._engine
        mine = len(rows.answer_positions(part))
        tokens = max(engine.all_reduce([float(mine)])[0], 1.0)
        batches = micro_batches([rows.tokens(group) for group in part], self._budget)

        def loss(batch: list[int]) -> torch.Tensor:
            chosen = [part[i] for i in batch]
            at = torch.from_numpy(rows.answer_positions(chosen))
            logp, values = engine(rows.packed(chosen).to(engine.device), self._temperature)
            old_logp, old_values, adv, ret = (
                x[at].to(engine.device)
                for x in (old["logprobs"], old["values"], advantages, returns)
            )
            policy, clipped = clipped_policy_loss(logp, old_logp, adv, config.clip)
            value = clipped_value_loss(values, old_values, ret, config.value_clip)
            with torch.no_grad():
                ratio = logp - old_logp
                measured = (
                    policy.sum(),
                    value.sum(),
                    clipped.float().sum(),
                    (ratio.exp() - 1 - ratio).sum(),
                    (values - ret).abs().sum(),
                    torch.tensor(float(len(at))),
                )
                sums[:] += [float(x) for x in measured]
            # Over the global token count: local counts would make the gradient depend on the split.
            return (policy.sum() + config.value_coefficient * value.sum()) / tokens

        return engine.update(batches, loss, self._dummy)

    def _dummy(self) -> torch.Tensor:
        token = np.zeros(1, np.int64)
        packed = pack([(token, [token])]).to(self._engine.device)
        logp, values = self._engine(packed, self._temperature)
        return logp.sum() + values.sum()

    # ------------------------------------------------------------- afterwards

    def export_weights(self, version: Version) -> WeightUpdate | None:
        """Rank 0 lays the policy's weights into shared memory, the adapter merged in."""
        if self._rank != 0:
            return None
        self._update = self._files.write(trained_weights(self._engine.module.lm), version)
        return self._update

    def weight_bytes(self) -> np.ndarray:
        """The current version's bytes, for rollout workers on other machines."""
        assert self._update is not None, "export_weights comes first"
        return np.fromfile(self._update.path, dtype=np.uint8)

    def save_model(self, folder: str, card: str) -> None:
        """Rank 0 writes the policy as a Hugging Face folder, adapter merged."""
        if self._rank == 0:
            tokenizer = load_tokenizer(self._path, self._config.policy.trust_remote_code)
            save_causal_lm(self._engine.module.lm, tokenizer, Path(folder), card)

    def save(self, folder: str, extra: dict[str, Any]) -> dict[str, str]:
        """This rank's share of a checkpoint; returns the hashes of the live state."""
        return self._engine.save(Path(folder), extra)

    def load(self, folder: str) -> dict[str, Any]:
        return self._engine.load(Path(folder), self._config.seed)

    def close(self) -> None:
        self._files.remove()

    @property
    def _temperature(self) -> float:
        return self._config.rollout.temperature

    @property
    def _budget(self) -> int:
        return self._config.ppo.optimizer.tokens_per_micro_batch


class _Rows:
    """A `ROLLOUTS` table as flat arrays: row i is prompt i followed by answer i."""

    def __init__(self, table: pa.Table | None) -> None:
        if table is None:
            self._prompts: list[np.ndarray] = []
            self._answers: list[np.ndarray] = []
            self.answer_at = np.zeros(1, np.int64)
            return
        prompts, prompt_at = flat(table, "prompt_tokens")
        answers, self.answer_at = flat(table, "response_tokens")
        self._prompts = np.split(prompts, prompt_at[1:-1])
        self._answers = np.split(answers, self.answer_at[1:-1])

    def groups(self, budget: int) -> list[list[int]]:
        """Row numbers by prompt; each group within `budget` tokens where it can be."""
        return share_prompts(self._prompts, [len(a) for a in self._answers], budget)

    def tokens(self, group: list[int]) -> int:
        return group_tokens(self._group(group))

    def packed(self, groups: list[list[int]]) -> Packed:
        return pack([self._group(group) for group in groups])

    def _group(self, rows: list[int]) -> Group:
        return self._prompts[rows[0]], [self._answers[i] for i in rows]

    def answer_positions(self, groups: list[list[int]]) -> np.ndarray:
        """Where the answers of `groups` lie in the flat answer arrays, in packed order."""
        spans = [np.arange(self.answer_at[i], self.answer_at[i + 1]) for g in groups for i in g]
        return np.concatenate([np.zeros(0, np.int64), *spans])

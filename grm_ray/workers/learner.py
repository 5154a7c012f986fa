"""One rank of the PPO learner: policy, critic and reference on one backbone, under ZeRO."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load_file

from grm_ray.config.ppo import PpoJob
from grm_ray.data.packing import micro_batches, pack
from grm_ray.data.rollout_rows import RolloutRows
from grm_ray.data.tables import EVALUATIONS, ROLLOUTS, flat, nested, select
from grm_ray.models import backbone
from grm_ray.models.backbone import (
    load_causal_lm,
    load_tokenizer,
    resolve_dtype,
    trained_weights,
)
from grm_ray.models.checkpoint import save_causal_lm
from grm_ray.models.policy import Policy
from grm_ray.objectives.rows import row_sums
from grm_ray.runtime import logs, priority, weights
from grm_ray.runtime.disk import writing
from grm_ray.runtime.timeline import Timeline, traced
from grm_ray.runtime.weights import ON_DEVICE, Version, WeightUpdate
from grm_ray.training.checkpoint import CheckpointMismatch
from grm_ray.training.engine import ZeroEngine
from grm_ray.training.policy_loss import ENGINE_GAP, Before, PolicyLoss, Targets
from grm_ray.training.process_group import address, join_group

AVERAGE = "average.safetensors"


@ray.remote
class Learner:
    """Evaluates rows as they are written, then learns from the step's rows at once."""

    def __init__(
        self, config: dict[str, Any], rank: int, world: int, model_path: str, threads: int, log: str
    ) -> None:
        logs.to_file(Path(log))
        self.timeline = Timeline(Path(log))
        priority.yield_to_engines()
        torch.set_num_threads(threads)
        self._config = PpoJob(**config)
        self._rank, self._world = rank, world
        self._path = model_path
        self._loss = PolicyLoss(self._config.ppo, self._config.rollout)
        self._files = weights.WeightFiles()
        self._update: WeightUpdate | None = None
        self._link: Any = None  # to the engines' GPUs

    def address(self) -> tuple[str, int]:
        """This rank's machine and a free port there."""
        return address()

    @traced
    def setup(self, meeting: tuple[str, int, int]) -> int:
        """Load policy and reference, join the group, build the engine; returns the process id."""
        config = self._config
        weights.remove_stale()
        join_group(self._rank, self._world, *meeting)
        torch.manual_seed(config.seed)  # equal adapters and value heads on every rank
        np.random.seed(config.seed)
        reference = None
        if config.ppo.kl.reference is not None:
            frozen = {"path": config.ppo.kl.reference, "frozen": True, "lora": None}
            same = {"gradient_checkpointing": False}
            backbone.check_same_vocabulary(self._path, config.ppo.kl.reference, config.policy)
            reference = load_causal_lm(config.policy.model_copy(update=frozen | same))
        policy = Policy(
            load_causal_lm(config.policy, self._path),
            config.value_head,
            reference,
            config.ppo.kl.ema,
        )
        self._link = self._gpu_link()
        if self._rank == 0 and self._link is None and not backbone.is_lora(policy.lm):
            self._files.reserve(sum(p.nbytes for p in policy.lm.parameters()))
        updates = config.ppo.steps * config.ppo.epochs * config.ppo.minibatches
        self._engine = ZeroEngine(
            policy, config.ppo.optimizer, resolve_dtype(config.policy.dtype), updates
        )
        torch.manual_seed(config.seed + 1000 * (self._rank + 1))
        return os.getpid()

    # ------------------------------------------------------- before the update

    @traced
    @torch.no_grad()
    def evaluate(self, *batches: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
        """`EVALUATIONS` of `ROLLOUTS` batches, and per-row metadata (KL, gap to the engine).

        Under ZeRO-3 all ranks call it at once, those without batches too.
        """
        engine = self._engine
        engine.module.train()  # no dropout is active in a `Policy`; checkpointing needs train mode
        rollouts = pa.concat_tables(batches) if batches else ROLLOUTS.empty_table()
        rows = RolloutRows(rollouts if rollouts.num_rows else None)
        engine_logp = flat(rollouts, "engine_logprobs")[0].copy()
        spared = self._config.ppo.old_logprobs == "engine"
        logp, ref, values = (np.zeros(rows.answer_at[-1], np.float32) for _ in range(3))
        what = {"with_reference": True, "reference_alone": spared}

        def read(chosen: list[list[int]] | None) -> None:
            if chosen is None:
                self._dummy(**what)
                return
            packed = rows.packed(chosen).to(engine.device)
            said = engine(packed, self._temperature, **what)
            at = rows.answer_positions(chosen)
            ref[at] = said.ref_logp_N.float().numpy(force=True)
            if not spared:
                logp[at] = said.logp_N.float().numpy(force=True)
                values[at] = said.values_N.float().numpy(force=True)

        engine.read(partial(_batches, rows, None), read)
        if spared:
            logp = engine_logp
        table = pa.table(
            [rollouts["uid"], *(nested(x, rows.answer_at) for x in (logp, ref, values))],
            schema=EVALUATIONS,
        )
        sums = partial(row_sums, offsets_B1=torch.from_numpy(rows.answer_at))
        before = Before(*map(torch.from_numpy, (logp, ref, values, engine_logp, rows.answer_at)))
        return table, {
            "uids": rollouts["uid"].to_pylist(),
            "kl": sums(before.logp_T - before.ref_logp_T).tolist(),
            "penalty": self._loss.row_penalties(before).tolist(),
            "entropy": sums(-before.logp_T).tolist(),
            "gap": sums((before.logp_T - before.engine_logp_T).abs()).tolist(),
        }

    # --------------------------------------------------------------- the update

    @traced
    def learn(
        self,
        rollout_refs: list[Any],
        evaluation_refs: list[Any],
        rewards: dict[str, float],
        minibatches: list[list[str]],
        kl_coefficient: float,
        policy_learns: bool,
    ) -> dict[str, float]:
        """The step's updates, as far as this rank's rows are concerned.

        Args:
            rollout_refs, evaluation_refs: batches that contain the rows of `rewards`.
            rewards: uid -> `PolicyLoss.row_rewards`, for the rows of this rank.
            minibatches: uids of this rank's rows in each update of the step.
            kl_coefficient: weight of the penalty in reward or loss.
            policy_learns: false: the critic alone does.

        Returns:
            Means over the updates that were made; `rows_learned`, those that were in any.
        """
        self._engine.module.train()
        rows, before = self._join(rollout_refs, evaluation_refs, list(rewards))
        targets = self._loss.prepare(
            torch.tensor(list(rewards.values()), dtype=torch.float32),
            before,
            kl_coefficient,
            self._engine.all_reduce,
        )
        number = {uid: i for i, uid in enumerate(rewards)}
        sums = dict.fromkeys(self._loss.figures, 0.0)
        made: dict[str, float] = {}
        updates, skipped, gap = 0, 0, 0.0
        for uids in minibatches:
            found = self._minibatch(rows, [number[uid] for uid in uids], targets, policy_learns)
            if found is None:
                continue
            figures, made = found
            if made["skipped_updates"]:
                skipped += 1
                continue
            targets = self._loss.follow(targets, figures, self._engine.all_reduce)
            if not updates:  # later, the distance from the engine is what was learned meanwhile
                gap = figures.get(ENGINE_GAP, 0.0)
            sums = {name: x + figures[name] for name, x in sums.items()}
            updates += 1
        self._engine.module.follow()
        learned, gap, *totals = self._engine.all_reduce([len(rewards), gap, *sums.values()])
        none = math.nan if skipped else 0.0  # of updates that were all left out
        means = {n: x / updates if updates else none for n, x in zip(sums, totals, strict=True)}
        if ENGINE_GAP in means:
            means[ENGINE_GAP] = gap
        return {"rows_learned": learned, **means, **made, "skipped_updates": skipped}

    def _join(
        self, rollout_refs: list[Any], evaluation_refs: list[Any], uids: list[str]
    ) -> tuple[RolloutRows, Before]:
        """The rows of `uids` from both stages, joined by uid."""
        if not uids:
            nothing = torch.zeros(0)
            bounds = torch.zeros(1, dtype=torch.long)
            return RolloutRows(None), Before(nothing, nothing, nothing, nothing, bounds)
        rollouts = select(pa.concat_tables(ray.get(rollout_refs)), uids)
        evaluations = select(pa.concat_tables(ray.get(evaluation_refs)), uids)
        columns = [(evaluations, name) for name in ("logprobs", "ref_logprobs", "values")]
        columns.append((rollouts, "engine_logprobs"))
        found = (torch.from_numpy(flat(table, name)[0].copy()) for table, name in columns)
        rows = RolloutRows(rollouts)
        return rows, Before(*found, torch.from_numpy(rows.answer_at))

    def _minibatch(
        self, rows: RolloutRows, part: list[int], targets: Targets, policy_learns: bool
    ) -> tuple[dict[str, float], dict[str, float]] | None:
        """One optimizer step on `part` of this rank's rows.

        Returns:
            This rank's share of the figures, and what the engine says; None without any row on any
            rank: no step is made, for Adam would go on with what it remembers.
        """
        engine = self._engine
        tokens, answers = engine.all_reduce(
            [float(len(rows.answer_positions([part]))), float(len(part))]
        )
        if not answers:
            return None
        what = {"with_entropy": self._loss.wants_entropy, "critic_alone": not policy_learns}

        def loss(chosen: list[list[int]]) -> tuple[torch.Tensor, dict[str, float]]:
            packed = rows.packed(chosen).to(engine.device)
            said = engine(packed, self._temperature, **what)
            wanted = targets.of(*rows.answer_tokens(chosen), engine.device)
            return self._loss(*said[:3], wanted, tokens, answers, policy_learns)

        made, told = engine.update(
            partial(_batches, rows, part), loss, partial(self._dummy, **what)
        )
        sums = {name: sum(figures[name] for figures in told) for name in self._loss.figures}
        return sums, made

    def _dummy(self, **what: bool) -> torch.Tensor:
        """What a rank does while others still have rows.

        Args:
            what: as the others ask for: ZeRO-3 wants the same modules to run on all ranks.
        """
        token = np.zeros(1, np.int64)
        packed = pack([(token, [token])]).to(self._engine.device)
        said = self._engine(packed, self._temperature, **what)
        return said.logp_N.sum() + said.values_N.sum()

    # ------------------------------------------------------------- afterwards

    @traced
    def hold_optimizer(self, on_device: bool) -> None:
        """Fetch the optimizer's moments to the GPU for an update, or put them into host memory."""
        self._engine.move_moments(self._engine.device if on_device else torch.device("cpu"))

    @traced
    def export_weights(self, version: Version) -> WeightUpdate | None:
        """Rank 0 lays the policy's weights ready, the adapter merged in: in shared memory, or
        where they are to go from GPU to GPU, in its own."""
        with self._engine.gathered(self._engine.module.lm):
            if self._rank == 0:
                weights_of = trained_weights(self._engine.module.lm)
                if self._link is None:
                    self._update = self._files.write(weights_of, version)
                else:
                    self._link.source.lay(weights_of)
                    self._update = WeightUpdate(version, ON_DEVICE, weights.host(), "")
        return self._update

    @traced
    def send_weights(self, workers: list[Any]) -> str:
        """Bring rollout workers what `export_weights` laid ready on the GPU; returns its version.

        A worker that dies meanwhile leaves the others waiting: the run ends after `timeout_s`, and
        goes on with `--resume`.
        """
        assert self._update is not None, "export_weights comes first"
        self._link.send(workers, self._update.version, *address())
        return str(self._update.version)

    def weight_bytes(self) -> tuple[np.ndarray, bool]:
        """The current version's bytes, for rollout workers on other machines; and True, by which
        others know that they are there, without reading them."""
        assert self._update is not None, "export_weights comes first"
        return np.fromfile(self._update.path, dtype=np.uint8), True

    @traced
    def save_model(self, folder: str, card: str) -> None:
        """Rank 0 writes the policy as a Hugging Face folder, adapter merged."""
        with self._engine.gathered(self._engine.module.lm):
            if self._rank == 0:
                tokenizer = load_tokenizer(self._path, self._config.policy.trust_remote_code)
                with writing(Path(folder)):
                    save_causal_lm(self._engine.module.lm, tokenizer, Path(folder), card)

    @traced
    def save(self, folder: str, extra: dict[str, Any]) -> dict[str, str]:
        """This rank's share of a checkpoint; returns the hashes of the live state."""
        average = self._engine.module.average
        also = {}
        if average and self._rank == 0:  # all ranks have the same
            also[AVERAGE] = {n: x.cpu() for n, x in average.items()}
        return self._engine.save(Path(folder), {**extra, "average": digest(average)}, also)

    @traced
    def load(self, folder: str) -> dict[str, Any]:
        """What `save` wrote; returns its `extra`.

        Raises:
            CheckpointMismatch: it is damaged, or another model's.
        """
        extra = self._engine.load(Path(folder), self._config.seed)
        module = self._engine.module
        if module.average:
            path = Path(folder) / AVERAGE
            try:
                module.average = load_file(path)
            except (OSError, SafetensorError) as error:
                raise CheckpointMismatch(f"{path} cannot be read ({error})") from None
            if digest(module.average) != extra["average"]:
                raise CheckpointMismatch(f"{path}: the average read back differs from that saved")
        return extra

    def close(self) -> None:
        self._files.remove()

    def _gpu_link(self) -> Any:
        """None where weights go through shared memory. vLLM is imported only where it is needed."""
        rollout = self._config.rollout
        if rollout.weight_transfer == "shared_memory" or self._rank != 0:
            return None
        from grm_ray.runtime.gpu_transfer import Link

        ranks_each = rollout.engine.tensor_parallel_size
        return Link(rollout.weight_transfer, ranks_each, self._config.timeout_s)

    @property
    def _temperature(self) -> float:
        return self._config.rollout.temperature


def _batches(rows: RolloutRows, of: list[int] | None, budget: int) -> list[list[list[int]]]:
    """Micro-batches of the rows `of` (None: all), each some groups of rows with equal prompts."""
    groups = rows.groups(budget, of)
    parts = micro_batches([rows.tokens(group) for group in groups], budget)
    return [[groups[i] for i in part] for part in parts]


def digest(weights: dict[str, torch.Tensor]) -> str:
    """Fingerprint of names and bytes."""
    found = xxhash.xxh3_128()
    for name, weight in sorted(weights.items()):
        found.update(name.encode())
        found.update(weight.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()

"""What each role of a job takes: sizes from the models' configs, one entry a role.

Nothing is loaded and nothing started; `models.footprint` sends shapes through the modules. Figures
are for full micro-batches, so that a run takes this at most, as far as its sizes say.
"""

from __future__ import annotations

from typing import Any

import torch

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.judging import EvaluateJob
from grm_ray.config.policy import Ppo
from grm_ray.config.ppo import Engine, PpoJob
from grm_ray.config.registry import is_path
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.schema import Head, Job, Model
from grm_ray.config.serve import ServeJob
from grm_ray.drivers.footprint.role import GIB, KEPT_HEAP, Role, dtype_of, in_words
from grm_ray.drivers.footprint.scorer import scorer_of
from grm_ray.models import backbone, footprint
from grm_ray.models.footprint import Pass, Size, Unknown
from grm_ray.training.footprint import Share, rank_share
from grm_ray.training.reward_loss import RewardLoss

# vLLM on CPUs takes prompts of so many tokens at once, or of one row (`workers.rollout._on_cpu`).
PREFILL = 2048


def roles_of(config: Job) -> list[Role]:
    """Every role of a job that has workers of its own; none for other jobs."""
    if isinstance(config, RewardModelJob):
        return [_trainer(config)]
    if isinstance(config, PpoJob):
        rollout = config.rollout
        judge = config.reward.true_reward
        rows = rollout.rows_per_batch + rollout.samples_per_prompt - 1
        return [
            _learner(config),
            _rollout(config, config.policy, rollout.engine, rollout.max_new_tokens),
            scorer_of(
                config.workers.scorer,
                [*config.reward.models.values(), *([judge] if judge and is_path(judge) else [])],
                config.reward.dtype,
                min(config.reward.tokens_per_micro_batch, rows * _longest(config)),
                _longest(config),
                config.policy.trust_remote_code,
            ),
        ]
    if isinstance(config, BestOfNJob):
        truth = [config.true_reward] if is_path(config.true_reward) else []
        return [
            _rollout(config, config.policy, config.rollout.engine, config.rollout.max_new_tokens),
            scorer_of(
                config.workers.scorer,
                [*config.proxies.values(), *truth],
                config.scoring.dtype,
                config.scoring.tokens_per_micro_batch,
                _longest(config),
                config.policy.trust_remote_code,
            ),
        ]
    if isinstance(config, EvaluateJob):  # its scorers hold one model after another
        each = [
            scorer_of(
                config.workers,
                [path],
                config.scoring.dtype,
                config.scoring.tokens_per_micro_batch,
                None,
                config.scoring.trust_remote_code,
            )
            for path in config.models.values()
        ]
        return [max(each, key=lambda role: role.on_host + role.device)]
    if isinstance(config, ServeJob):
        paths = list(config.models.values())
        budget, trust = config.tokens_per_micro_batch, config.trust_remote_code
        return [scorer_of(config.workers, paths, config.dtype, budget, None, trust)]
    return []


def _trainer(config: RewardModelJob) -> Role:
    workers, optimizer, data = config.workers, config.training.optimizer, config.data
    role = Role("trainer", workers, dtype_of(config.model.dtype, workers))
    try:
        model = _reward_model(config.model, config.head, role.dtype)
    except Unknown as error:
        role.missing.append(str(error))
        return role
    size = Size.of(model)
    role.about.append(_counted("reward model", size, config.model))
    loss = RewardLoss(config.loss)
    answers = 1 if loss.regression else 2
    # A pair is never parted: where it is longer than a micro-batch, it is one.
    tokens = max(optimizer.tokens_per_micro_batch, answers * data.max_length)
    groups = footprint.groups_of(tokens, data.max_length, answers)
    try:
        if config.model.frozen:
            work = footprint.scoring_pass(model, groups)
        else:
            work = footprint.training_pass(model, groups, loss.logprobs_of(len(groups)))
    except Unknown as error:
        role.missing.append(f"activations: {error}")
        work = None
    _hold(role, rank_share(size, work, optimizer, workers.count, workers.gpus > 0))
    _speed(role, work, "train")
    return role


def _learner(config: PpoJob) -> Role:
    workers, ppo, kl = config.workers.learner, config.ppo, config.ppo.kl
    role = Role("learner", workers, dtype_of(config.policy.dtype, workers))
    dtype = getattr(torch, role.dtype)
    try:
        lm = footprint.build(_folder(config.policy.path), config.policy, dtype)
        reference = None
        if kl.reference is not None:
            frozen = {"path": kl.reference, "frozen": True, "lora": None}
            other = config.policy.model_copy(update=frozen | {"gradient_checkpointing": False})
            reference = footprint.build(_folder(kl.reference), other, dtype)
        policy = footprint.build_policy(lm, config.value_head, reference, kl.ema)
    except Unknown as error:
        role.missing.append(str(error))
        return role
    size = Size.of(policy)
    role.about.append(_counted("policy, critic and reference", size, config.policy))
    samples = config.rollout.samples_per_prompt
    tokens = min(ppo.optimizer.tokens_per_micro_batch, _tokens_an_update(config))
    tokens = max(tokens, _longest(config))
    groups = footprint.groups_of(tokens, _longest(config), samples)
    work: Pass | None = None
    try:
        entropy = ppo.entropy_coefficient > 0
        work = footprint.policy_pass(policy, groups, config.rollout.temperature, entropy)
    except Unknown as error:
        role.missing.append(f"activations: {error}")
    _hold(role, rank_share(size, work, ppo.optimizer, workers.count, workers.gpus > 0))
    if policy.average:  # kept beside the weights, in fp32
        role.parts["average"] = sum(x.nbytes for x in policy.average.values())
    _speed(role, work, "train")
    if work is not None:
        role.flops["evaluate"] = _passes_before(ppo) * work.forward_flops / work.tokens
    return role


def _tokens_an_update(config: PpoJob) -> int:
    """Of a rank's rows in one update, all as long as they may be; their prompts counted once."""
    rollout, samples = config.rollout, config.rollout.samples_per_prompt
    parts = config.ppo.minibatches * config.workers.learner.count
    rows = -(-rollout.prompts_per_step * samples // parts)
    prompts = -(-rows // samples)
    return prompts * config.data.max_prompt_length + rows * (rollout.max_new_tokens + 1)


def _passes_before(ppo: Ppo) -> int:
    """Forward passes of a row before the update: policy and reference."""
    return 1 if ppo.old_logprobs == "engine" else 2


def _rollout(config: PpoJob | BestOfNJob, policy: Model, engine: Engine, answer: int) -> Role:
    workers = config.workers.rollout
    role = Role("rollout", workers, dtype_of(policy.dtype, workers))
    plain = policy.model_copy(update={"lora": None, "gradient_checkpointing": False})
    try:
        lm = footprint.build(_folder(policy.path), plain, getattr(torch, role.dtype))
    except Unknown as error:
        role.missing.append(str(error))
        return role
    size, ranks = Size.of(lm), engine.tensor_parallel_size
    length = config.data.max_prompt_length + answer
    prefill = max(PREFILL, length)
    vocabulary, width = backbone.unwrap(lm).get_input_embeddings().weight.shape
    each = size.bytes / size.total
    role.parts["weights"] = size.bytes / ranks
    if not workers.gpus:
        tied = lm.get_output_embeddings().weight is lm.get_input_embeddings().weight
        # The CPU kernels multiply by a packed copy, beside an embedding that is the head as well.
        role.parts["packed language head"] = vocabulary * width * each * tied
        role.parts["KV cache"] = max(1, round(engine.kv_cache_gb)) * GIB
    else:
        role.about.append(f"the engine takes {engine.gpu_memory_utilization:g} of each GPU")
    widest = max(p.shape[0] for p in lm.parameters() if p.dim() == 2 and p.shape[0] != vocabulary)
    logits = engine.max_num_seqs * vocabulary * 4 * 3  # fp32: logits, log-probs, what is sorted
    role.parts["activations"] = max(logits, prefill * (2 * widest + 4 * width) * each) / ranks
    keys = footprint.key_bytes(lm)
    if keys is not None:
        role.keys = keys * length
    role.flops["write"] = 2.0 * size.total
    role.reads = size.bytes / ranks
    return role


def _reward_model(source: Model, head: Head, dtype: str) -> Any:
    return footprint.build_reward_model(_folder(source.path), source, head, getattr(torch, dtype))


def _folder(path: str) -> str:
    try:
        return backbone.resolve(path)
    except ValueError as error:
        raise Unknown(str(error)) from None


def _longest(config: PpoJob | BestOfNJob) -> int:
    return config.data.max_prompt_length + config.rollout.max_new_tokens + 1


def _hold(role: Role, share: Share) -> None:
    role.parts |= {
        "weights": share.weights,
        "gradients": share.gradients,
        "optimizer": share.optimizer,
        "activations": share.activations * (1.0 if role.workers.gpus else KEPT_HEAP),
    }
    role.host, role.loading = share.host, share.loading


def _speed(role: Role, work: Pass | None, kind: str) -> None:
    if work is not None:
        role.flops[kind] = work.flops / work.tokens


def _counted(what: str, size: Size, model: Model) -> str:
    how = "all weights" if model.lora is None else f"LoRA rank {model.lora.rank}"
    if model.lora is not None and model.lora.last_layers is not None:
        how += f" in the last {model.lora.last_layers} layers"
    if model.frozen:
        how = "frozen, only the head is trained"
    return (
        f"{what}: {in_words(size.total)} parameters, {in_words(size.trainable)} trainable ({how})"
    )

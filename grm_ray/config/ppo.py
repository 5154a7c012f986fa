"""The schema of `grm_ray.ppo`: rollouts, reward, PPO and its workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from grm_ray.config.schema import (
    Checkpoint,
    Cpus,
    Dtype,
    Fraction,
    Head,
    Job,
    Model,
    NonNegative,
    Optimizer,
    Positive,
    Rate,
    Section,
    Source,
    Workers,
)


class PromptData(Section):
    train: Source
    eval: Source | None = None
    max_prompt_length: Positive = 256


class Engine(Section):
    """vLLM engine options; see vLLM's own documentation for their meaning."""

    max_num_seqs: Positive = 32
    enforce_eager: bool = True
    kv_cache_gb: Rate = 1.0
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    tensor_parallel_size: Positive = 1


class Rollout(Section):
    prompts_per_step: Positive = 16
    samples_per_prompt: Positive = 2
    max_new_tokens: Positive = 64
    temperature: Rate = 1.0
    top_p: Fraction = 1.0
    rows_per_batch: Positive = 4
    engine: Engine = Engine()

    @field_validator("top_p")
    @classmethod
    def _sampled_and_learned_law_are_one(cls, top_p: float) -> float:
        if top_p != 1.0:
            raise ValueError("must be 1: the learner's log-probs are those of the whole vocabulary")
        return top_p


class Reward(Section):
    """Proxy reward model, and the true reward that is only ever watched."""

    path: str
    dtype: Dtype = "auto"
    normalize: Literal["none", "first_batch", "running"] = "first_batch"
    clip: Rate | None = 5.0
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 0.0
    true_reward: str | None = None
    tokens_per_micro_batch: Positive = 2048


class Kl(Section):
    """KL penalty in the reward; `target` (nats an answer) switches the adaptive controller on."""

    coefficient: Annotated[float, Field(ge=0)] = 0.05
    estimator: Literal["k1", "k2", "k3"] = "k1"
    target: Rate | None = None
    horizon: Positive = 1000

    @model_validator(mode="after")
    def _zero_cannot_adapt(self) -> Kl:
        if self.target is not None and self.coefficient == 0:
            raise ValueError("target needs a coefficient above 0: the controller multiplies it")
        return self


class Ppo(Section):
    steps: Positive = 20
    epochs: Positive = 1
    minibatches: Positive = 1
    clip: Rate = 0.2
    value_clip: Rate = 0.2
    value_coefficient: Annotated[float, Field(ge=0)] = 0.1
    gamma: Fraction = 1.0
    lam: Fraction = 0.95
    whiten_advantages: bool = True
    kl: Kl = Kl()
    optimizer: Optimizer = Optimizer()


class Evaluation(Section):
    """Held-out prompts: how many, and every how many steps (0: only before and after)."""

    every: NonNegative = 0
    prompts: Positive = 48


class RolloutWorkers(Workers):
    threads: Positive = 2


class ScorerWorkers(Workers):
    """At least two, so that one may die."""

    count: Annotated[int, Field(ge=2)] = 2
    cpus: Cpus = 0.25


class LearnerWorkers(Workers):
    threads: Positive = 2


class PpoWorkers(Section):
    rollout: RolloutWorkers = RolloutWorkers()
    scorer: ScorerWorkers = ScorerWorkers()
    learner: LearnerWorkers = LearnerWorkers()


class PpoJob(Job):
    job: Literal["ppo"] = "ppo"
    policy: Model
    value_head: Head = Head()
    reward: Reward
    data: PromptData
    rollout: Rollout = Rollout()
    ppo: Ppo = Ppo()
    evaluation: Evaluation = Evaluation()
    workers: PpoWorkers = PpoWorkers()
    checkpoint: Checkpoint = Checkpoint()

    @model_validator(mode="after")
    def _a_policy_learns_and_a_critic_has_one_value(self) -> PpoJob:
        if self.policy.frozen:
            raise ValueError("policy.frozen: true would learn nothing")
        if self.value_head.attributes:
            raise ValueError("value_head.attributes: a critic has one value")
        return self

    @field_validator("ppo")
    @classmethod
    def _the_learner_holds_whole_weights(cls, ppo: Ppo) -> Ppo:
        if ppo.optimizer.zero_stage == 3:
            raise ValueError("ppo.optimizer.zero_stage: 3 is not supported here yet; use 2")
        return ppo

    @model_validator(mode="after")
    def _a_step_feeds_every_minibatch(self) -> PpoJob:
        rows = self.rollout.prompts_per_step * self.rollout.samples_per_prompt
        ranks = self.workers.learner.count
        if rows < self.ppo.minibatches * ranks:
            raise ValueError(
                f"ppo.minibatches: {self.ppo.minibatches} on {ranks} learners need as many rows a "
                f"step; prompts_per_step x samples_per_prompt is {rows}"
            )
        return self

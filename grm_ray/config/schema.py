"""The schema of every job's config: one pydantic model a section, unknown keys refused.

Sizes are in tokens unless a name says otherwise; rates are per optimizer step; memory in GiB.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]
# Ray counts CPUs in ten-thousandths; a worker with no CPU at all could be packed without limit.
Cpus = Annotated[float, Field(gt=0)]
# "auto": bfloat16 where the hardware multiplies it (GPUs, CPUs with AVX-512), float32 elsewhere;
# emulated bfloat16 is about ten times slower than float32.
Dtype = Literal["auto", "bfloat16", "float32"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)


class Lora(Section):
    """Low-rank adapters (PEFT). `null` in place of this section trains all weights."""

    rank: Positive = 16
    alpha: Positive = 32
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.05
    targets: list[str] = Field(
        default=["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
    )
    # Adapters in the last so many layers only: the backward pass ends there. null: in all.
    last_layers: Positive | None = None


class Head(Section):
    """Scalar head on the last hidden state: one linear map, or one hidden ReLU layer."""

    kind: Literal["linear", "mlp"] = "linear"
    hidden: Positive = 1024
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


class Model(Section):
    """`path`: a folder, a Hugging Face hub id, or `smollm2-135m-instruct` (the embedded model)."""

    path: str
    dtype: Dtype = "auto"
    lora: Lora | None = None
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False


class Source(Section):
    """Rows to read. `path`: a .jsonl(.gz)/.parquet/.arrow file, a hub data set, or `demo`.

    `format`: `trl` (columns `chosen` and `rejected`, `prompt` explicit or implicit), or a data set
    with columns of its own (`data.adapters`).
    """

    path: str
    format: Literal["trl", "unified_feedback"] = "trl"
    split: str = "train"
    subset: str | None = None
    limit: Positive | None = None
    shuffle: bool = True


class Workers(Section):
    """One role's worker actors. `threads` is set apart from `cpus`: two cores can hold them all."""

    count: Positive = 1
    cpus: Cpus = 0.5
    gpus: Annotated[float, Field(ge=0)] = 0
    threads: Positive = 1


class Optimizer(Section):
    """AdamW under DeepSpeed ZeRO, cosine schedule with linear warm-up."""

    learning_rate: Rate = 1e-5
    betas: tuple[Fraction, Fraction] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_ratio: Fraction = 0.03
    minimum_ratio: Fraction = 0.0
    max_grad_norm: Rate = 1.0
    zero_stage: Literal[0, 1, 2] = 2
    tokens_per_micro_batch: Positive = 2048


class Checkpoint(Section):
    """Resumable state every `every` steps (0: never), the newest `keep` of them kept."""

    every: NonNegative = 10
    keep: Positive = 2


class Job(Section):
    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    runs: str = "runs"
    seed: NonNegative = 0
    # Seconds without any sign of life from a worker that is waited for; then the run gives up.
    timeout_s: Positive = 1800
    tracking: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]


# ---------------------------------------------------------------- reward model


class PreferenceLoss(Section):
    """(1 - alpha) * preference + alpha * regularizer (GRM, Yang et al. 2024, section 3)."""

    preference: str = "bradley_terry"
    regularizer: str | None = "sft"
    alpha: Fraction = 0.01
    beta: Rate = 0.1

    @model_validator(mode="after")
    def _alpha_needs_a_regularizer(self) -> PreferenceLoss:
        if self.regularizer is None and self.alpha > 0:
            raise ValueError("alpha > 0 needs a regularizer; set alpha: 0 for plain Bradley-Terry")
        return self


class PairData(Section):
    train: Source
    eval: Source | None = None
    # Used when `eval` is null: this share of the training prompts is held out.
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_length: Positive = 512
    truncation: Literal["left", "right", "drop"] = "left"


class RewardTraining(Section):
    epochs: Rate = 1
    pairs_per_step: Positive = 16
    # Evaluations before training, every so many steps and at the end; 0: at the end only.
    eval_every: NonNegative = 20
    optimizer: Optimizer = Optimizer()


class TrainerWorkers(Workers):
    count: Positive = 2


class RewardCheckpoint(Checkpoint):
    every: NonNegative = 0


class RewardModelJob(Job):
    job: Literal["rm"] = "rm"
    model: Model
    head: Head = Head()
    loss: PreferenceLoss = PreferenceLoss()
    data: PairData
    training: RewardTraining = RewardTraining()
    workers: TrainerWorkers = TrainerWorkers()
    checkpoint: RewardCheckpoint = RewardCheckpoint()


# ------------------------------------------------------------------------- PPO


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
    def _a_step_feeds_every_minibatch(self) -> PpoJob:
        rows = self.rollout.prompts_per_step * self.rollout.samples_per_prompt
        ranks = self.workers.learner.count
        if rows < self.ppo.minibatches * ranks:
            raise ValueError(
                f"ppo.minibatches: {self.ppo.minibatches} on {ranks} learners need as many rows a "
                f"step; prompts_per_step x samples_per_prompt is {rows}"
            )
        return self

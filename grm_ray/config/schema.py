"""The schema of every job's config: one pydantic model a section, unknown keys refused.

Sizes are in tokens unless a name says otherwise; rates are per optimizer step; memory in GiB.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[int, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
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
    # Of a linear head: transformers' sequence classification has none. An MLP has its biases.
    bias: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    # Several outputs, one an attribute (HelpSteer2): the names of the label columns, and what each
    # adds to the one score that pairs are compared by. None: one output, which is the score.
    attributes: list[str] = []
    weights: list[float] = []

    @model_validator(mode="after")
    def _one_weight_an_attribute(self) -> Head:
        if len(set(self.attributes)) != len(self.attributes):
            raise ValueError("attributes: each name once")
        if len(self.weights) != len(self.attributes):
            raise ValueError(
                f"weights: {len(self.weights)} for {len(self.attributes)} attributes; give one each"
            )
        return self


class Model(Section):
    """`path`: a folder, a Hugging Face hub id, or `smollm2-135m-instruct` (the embedded model)."""

    path: str
    dtype: Dtype = "auto"
    lora: Lora | None = None
    # Only the head learns, on the hidden states of the model as it is.
    frozen: bool = False
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _frozen_has_nothing_to_adapt(self) -> Model:
        if self.frozen and (self.lora is not None or self.gradient_checkpointing):
            raise ValueError("frozen: true leaves nothing for lora or gradient_checkpointing")
        return self


Format = Literal[
    "trl",
    "columns",
    "unified_feedback",
    "preference_700k",
    "helpsteer2",
    "helpsteer2_preference",
    "hh_rlhf",
    "hhh_alignment",
    "mt_bench_human",
    "mt_bench_human_authors",
    "reward_bench",
    "reward_bench_2",
    "rm_bench",
    "reward_math",
]


class Source(Section):
    """Rows to read. `path`: a .jsonl(.gz)/.parquet/.arrow file, a hub data set, or `demo`.

    `format`: `trl` (columns `chosen` and `rejected`, `prompt` explicit or implicit), `columns` (the
    same under other names, given in `columns`), or a data set with columns of its own
    (`data.adapters`).
    """

    path: str
    format: Format = "trl"
    # Format `columns`: our name -> the file's, for prompt, chosen, rejected, and where there are
    # such columns margin, label_smoothing, subset.
    columns: dict[
        Literal["prompt", "chosen", "rejected", "margin", "label_smoothing", "subset"], str
    ] = {}
    split: str = "train"
    subset: str | None = None
    # Only the rows whose columns have these values.
    where: dict[str, Any] = {}
    # Of prompt and longest answer together; what is longer does not count towards `limit`.
    max_characters: Positive | None = None
    limit: Positive | None = None
    # At most so many pairs of one prompt; which ones, the seed says.
    pairs_per_prompt: Positive | None = None
    shuffle: bool = True

    @field_validator("where")
    @classmethod
    def _where_names_plain_values(cls, where: dict[str, Any]) -> dict[str, Any]:
        odd = [name for name, value in where.items() if not isinstance(value, str | int | float)]
        if odd:
            raise ValueError(f"{', '.join(odd)}: a value is a text, a number, true or false")
        return where

    @model_validator(mode="after")
    def _columns_have_their_format(self) -> Source:
        if (self.format == "columns") != bool(self.columns):
            raise ValueError("format: columns and the key columns come together")
        if self.format == "columns" and not {"chosen", "rejected"} <= set(self.columns):
            raise ValueError("columns: needs at least chosen and rejected")
        return self


class PairSource(Source):
    """Training pairs: a source in a mixture.

    `weight`: how often an epoch sees each row; 0.5 is another half every epoch, 2 is twice.
    `flip`: share of pairs whose two answers change places (label noise, for experiments).
    """

    weight: Rate = 1.0
    flip: Fraction = 0.0


class Workers(Section):
    """One role's worker actors. `threads` is set apart from `cpus`: two cores can hold them all."""

    count: Positive = 1
    cpus: Cpus = 0.5
    gpus: Annotated[float, Field(ge=0)] = 0
    threads: Positive = 1


class Optimizer(Section):
    """AdamW under DeepSpeed ZeRO, cosine schedule with linear warm-up."""

    learning_rate: Rate = 1e-5
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Rate = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    warmup_ratio: Fraction = 0.03
    minimum_ratio: Fraction = 0.0
    max_grad_norm: Rate = 1.0
    zero_stage: Literal[0, 1, 2, 3] = 2
    # What ZeRO keeps in the host's memory; "all" (weights too) needs stage 3.
    offload: Literal["none", "optimizer", "all"] = "none"
    tokens_per_micro_batch: Positive = 2048

    @model_validator(mode="after")
    def _offload_has_its_stage(self) -> Optimizer:
        least = {"none": 0, "optimizer": 1, "all": 3}[self.offload]
        if self.zero_stage < least:
            raise ValueError(f"offload: {self.offload} needs zero_stage {least} or more")
        return self


class Checkpoint(Section):
    """Resumable state every `every` steps (0: never), the newest `keep` of them kept."""

    every: NonNegative = 10
    keep: Positive = 2


class Job(Section):
    name: Name
    runs: str = "runs"
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    # Seconds without any sign of life from a worker that is waited for; then the run gives up.
    timeout_s: Positive = 1800
    tracking: list[Literal["tensorboard", "wandb", "mlflow"]] = ["tensorboard"]


# ---------------------------------------------------------------- reward model


class PreferenceLoss(Section):
    """(1 - alpha) * preference + alpha * regularizer (GRM, Yang et al. 2024, section 3).

    `centering` * (chosen + rejected)^2 and `score_l2` * (chosen^2 + rejected^2) are added to the
    preference loss. `normalize_by: margins` divides by the sum of the margins in place of the
    number of pairs (a scaled loss then keeps the learning rate's meaning).
    """

    preference: str = "bradley_terry"
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    centering: Annotated[float, Field(ge=0)] = 0.0
    score_l2: Annotated[float, Field(ge=0)] = 0.0
    normalize_by: Literal["pairs", "margins"] = "pairs"
    # What a pair without a margin gets, for losses that need one; null: it is left out.
    missing_margin: float | None = None
    regularizer: str | None = "sft"
    alpha: Fraction = 0.01
    beta: Rate = 0.1

    @model_validator(mode="after")
    def _alpha_needs_a_regularizer(self) -> PreferenceLoss:
        if self.regularizer is None and self.alpha > 0:
            raise ValueError("alpha > 0 needs a regularizer; set alpha: 0 for plain Bradley-Terry")
        return self


class PairData(Section):
    """`train`: one source or a list (a mixture). `eval`: one source, or several by name."""

    train: Annotated[list[PairSource], Field(min_length=1)]
    eval: dict[Name, Source] = {}
    # Used when `eval` is empty: this share of the training prompts is held out.
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    max_length: Positive = 512
    truncation: Literal["left", "right", "drop"] = "left"

    @field_validator("train", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, train: Any) -> Any:
        return [train] if isinstance(train, dict | Source) else train

    @field_validator("eval")
    @classmethod
    def _no_set_is_named_train(cls, sets: dict[str, Source]) -> dict[str, Source]:
        if "train" in sets:
            raise ValueError("an evaluation set cannot be named 'train'")
        return sets

    @field_validator("eval", mode="before")
    @classmethod
    def _one_source_has_a_name(cls, given: Any) -> Any:
        if given is None:
            return {}
        alone = isinstance(given, Source) or (isinstance(given, dict) and "path" in given)
        return {"held_out": given} if alone else given


class RewardTraining(Section):
    epochs: Rate = 1
    pairs_per_step: Positive = 16
    # Evaluations before training, every so many steps and at the end; 0: at the end only.
    eval_every: NonNegative = 20
    optimizer: Optimizer = Optimizer()


class TrainerWorkers(Workers):
    count: Positive = 2


class RewardCheckpoint(Checkpoint):
    """`best_by`: the saved model is the one with the highest accuracy on this evaluation set
    (`held_out` where the set has no name); null: the last one."""

    every: NonNegative = 0
    best_by: str | None = None


class RewardModelJob(Job):
    job: Literal["rm"] = "rm"
    model: Model
    head: Head = Head()
    loss: PreferenceLoss = PreferenceLoss()
    data: PairData
    training: RewardTraining = RewardTraining()
    workers: TrainerWorkers = TrainerWorkers()
    checkpoint: RewardCheckpoint = RewardCheckpoint()

    @model_validator(mode="after")
    def _best_by_a_set_that_is_there(self) -> RewardModelJob:
        sets = list(self.data.eval) or ["held_out"]
        best = self.checkpoint.best_by
        if best is not None and best not in sets:
            raise ValueError(f"checkpoint.best_by: no evaluation set '{best}'; there is {sets}")
        return self

    @model_validator(mode="after")
    def _a_frozen_backbone_is_not_regularized(self) -> RewardModelJob:
        if self.model.frozen and self.loss.alpha:
            raise ValueError("model.frozen: true needs loss.alpha: 0: no hidden state moves")
        if self.model.frozen and self.training.optimizer.zero_stage == 3:
            raise ValueError("model.frozen: true needs training.optimizer.zero_stage: 2 or less")
        return self

    @model_validator(mode="after")
    def _attributes_are_regressed(self) -> RewardModelJob:
        loss, regression = self.loss, self.loss.preference == "regression"
        if regression != bool(self.head.attributes):
            raise ValueError("loss.preference: regression and head.attributes come together")
        if regression and (loss.alpha or loss.centering or loss.score_l2 or loss.label_smoothing):
            raise ValueError(
                "loss.preference: regression is on single answers: set alpha, centering, score_l2 "
                "and label_smoothing to 0"
            )
        if regression and any(s.flip or s.max_characters for s in self.data.train):
            raise ValueError("data.train: flip and max_characters are for pairs, not regression")
        if regression and not self.data.eval:
            raise ValueError("data.eval: regression needs evaluation pairs of its own")
        return self


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

"""The schema of `grm_ray.rm`: loss, data and training of a reward model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from grm_ray.config.schema import (
    Checkpoint,
    Count,
    Fraction,
    Head,
    Job,
    Model,
    Name,
    NonNegative,
    Optimizer,
    PairSource,
    Positive,
    Rate,
    Section,
    Source,
    Workers,
)


class PreferenceLoss(Section):
    """(1 - alpha) * preference + alpha * regularizer (GRM, Yang et al. 2024, section 3).

    `centering` * (chosen + rejected)^2 and `score_l2` * (chosen^2 + rejected^2) are added to the
    preference loss. `normalize_by: margins` divides by the sum of the margins in place of the
    number of pairs (a scaled loss then keeps the learning rate's meaning).
    """

    preference: str = "bradley_terry"
    """A registered preference loss, or your own."""
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.0
    """How likely a label is taken to be wrong."""
    centering: Annotated[float, Field(ge=0)] = 0.0
    score_l2: Annotated[float, Field(ge=0)] = 0.0
    normalize_by: Literal["pairs", "margins"] = "pairs"
    """What the sum of the preference losses is divided by."""
    missing_margin: float | None = None
    """What a pair without a margin gets, for losses that need one; null: it is left out."""
    regularizer: str | None = "sft"
    """A registered regularizer on the language head, or your own; null with alpha 0."""
    alpha: Fraction = 0.01
    """0: Bradley-Terry alone."""
    beta: Rate = 0.1
    """Of the DPO regularizers."""

    @model_validator(mode="after")
    def _alpha_needs_a_regularizer(self) -> PreferenceLoss:
        if self.regularizer is None and self.alpha > 0:
            raise ValueError("alpha > 0 needs a regularizer; set alpha: 0 for plain Bradley-Terry")
        return self


class PairData(Section):
    """`train`: one source or a list (a mixture). `eval`: one source, or several by name."""

    train: Annotated[list[PairSource], Field(min_length=1)]
    eval: dict[Name, Source] = Field(default_factory=dict)
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """This share of the training prompts is held out where there is no `eval`; else it is not
    used."""
    max_length: Positive = 512
    """Longest prompt with answer, in tokens."""
    truncation: Literal["left", "right", "drop"] = "left"
    """Of what is longer: the prompt's head goes, the answer's tail, or the pair."""

    @field_validator("train", mode="before")
    @classmethod
    def _one_source_is_a_list(cls, train: Any) -> Any:
        return train if isinstance(train, list) else [train]

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
    """How long and how the reward model is trained."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] = 1
    """May be a part of one."""
    pairs_per_step: Positive = 16
    """Pairs of one optimizer step, over all ranks (global batch size)."""
    eval_every: NonNegative = 20
    """Evaluations before training, every so many steps and at the end; 0: at the end only."""
    optimizer: Optimizer = Optimizer()
    """Optimizer of the reward model."""


class TrainerWorkers(Workers):
    """Training ranks."""

    count: Count = 2


class RewardCheckpoint(Checkpoint):
    """`best_by`: the saved model is the one with the highest accuracy on this evaluation set
    (`held_out` where the set has no name); null: the last one."""

    every: NonNegative = 100
    best_by: str | None = None


class RewardModelJob(Job):
    """Training of a reward model on preference pairs or graded answers."""

    job: Literal["rm"] = "rm"
    model: Model
    """The backbone to start from."""
    head: Head = Head()
    """Head that maps hidden states to scores."""
    new_head: bool = False
    """Where `model.path` is a reward model, training goes on with its head; true: with a new
    one."""
    loss: PreferenceLoss = PreferenceLoss()
    """What is minimised."""
    data: PairData
    """Training and evaluation pairs."""
    training: RewardTraining = RewardTraining()
    """Length of the training, and the optimizer."""
    workers: TrainerWorkers = TrainerWorkers()
    """Training ranks."""
    checkpoint: RewardCheckpoint = RewardCheckpoint()
    """Resumable state, and which model is saved."""

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
            raise ValueError(
                "model.frozen: true needs loss.alpha: 0, because hidden states do not change"
            )
        if self.model.frozen and self.training.optimizer.zero_stage == 3:
            raise ValueError("model.frozen: true needs training.optimizer.zero_stage: 2 or less")
        return self

    @model_validator(mode="after")
    def _attributes_are_regressed(self) -> RewardModelJob:
        loss, regression = self.loss, self.loss.preference == "regression"
        if regression != bool(self.head.attributes):
            raise ValueError(
                "loss.preference: regression needs head.attributes, and head.attributes needs "
                "regression"
            )
        if regression and (loss.alpha or loss.centering or loss.score_l2 or loss.label_smoothing):
            raise ValueError(
                "loss.preference: regression learns from single answers: set alpha, centering, "
                "score_l2 and label_smoothing to 0"
            )
        if regression and any(s.flip or s.max_characters for s in self.data.train):
            raise ValueError("data.train: flip and max_characters are for pairs, not regression")
        if regression and not self.data.eval:
            raise ValueError(
                "data.eval: regression needs evaluation pairs here, as its training data has none"
            )
        return self

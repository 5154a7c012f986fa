"""The schema of the jobs that judge reward models: evaluate, study, curate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from grm_ray.config.schema import (
    Count,
    Cpus,
    Fraction,
    Job,
    Name,
    PairSource,
    PathText,
    Positive,
    Rate,
    Scoring,
    Section,
    Source,
    Workers,
)


class Ensemble(Section):
    """Models of the same job judged as one.

    Each member's scores are first brought to mean 0 and deviation 1 on the `reference` set (null:
    the first one): a member with large scores would otherwise outvote the others.
    """

    members: Annotated[list[Name], Field(min_length=2)]
    """Names of two or more models."""
    aggregate: Literal["mean", "min"] = "mean"
    """The mean or the minimum of the scores of the members."""
    reference: Name | None = None


class JudgeWorkers(Workers):
    """Workers that score answers, each with the reward model loaded."""

    count: Count = 2
    cpus: Cpus = 0.5


class JudgeScoring(Scoring):
    """How reward models are run: never what comes out, up to rounding."""

    trust_remote_code: bool = False
    """Whether code that comes with a hub model may run here."""


class EvaluateJob(Job):
    """Accuracy of saved reward models on preference sets, side by side.

    `models`: name -> folder or hub id. `sets`: name -> source; `limit` and `shuffle` choose rows.
    `baseline`: the model that every other is compared with, pair by pair; null: the first.
    """

    job: Literal["evaluate"] = "evaluate"
    models: Annotated[dict[Name, PathText], Field(min_length=1)]
    ensembles: dict[Name, Ensemble] = Field(default_factory=dict)
    """Name -> several of `models` that are judged as one more."""
    sets: Annotated[dict[Name, Source], Field(min_length=1)]
    baseline: Name | None = None
    scoring: JudgeScoring = JudgeScoring()
    """How reward models are run."""
    workers: JudgeWorkers = JudgeWorkers()
    """Workers that score answers."""

    @model_validator(mode="after")
    def _names_are_there(self) -> EvaluateJob:
        twice = set(self.models) & set(self.ensembles)
        if twice:
            raise ValueError(f"ensembles: {sorted(twice)} are already names of models")
        for name, ensemble in self.ensembles.items():
            unknown = [m for m in ensemble.members if m not in self.models]
            if unknown:
                raise ValueError(f"ensembles.{name}.members: {unknown} are not in models")
            if len(set(ensemble.members)) != len(ensemble.members):
                raise ValueError(f"ensembles.{name}.members: a model is listed twice")
            if ensemble.reference is not None and ensemble.reference not in self.sets:
                raise ValueError(
                    f"ensembles.{name}.reference: there is no set '{ensemble.reference}'"
                )
        if self.baseline is not None and self.baseline not in {*self.models, *self.ensembles}:
            raise ValueError(f"baseline: there is no model '{self.baseline}'")
        return self


class StudyJob(Job):
    """A grid of reward-model runs, each trained and judged once.

    `base` is a reward-model config without `name` and `runs`; a cell is one choice from every
    factor of `vary`, whose `key.path: value` changes are laid over the base. Cells that differ in
    `repeat` only (seeds) are repetitions: figures are means over them, and `ensembles` judges
    each such group as one model too, by the mean or the least of its members' scores.
    """

    job: Literal["study"] = "study"
    base: dict[str, Any]
    vary: Annotated[
        dict[Name, Annotated[dict[Name, dict[str, Any]], Field(min_length=1)]], Field(min_length=1)
    ]
    sets: Annotated[dict[Name, Source], Field(min_length=1)]
    """Name -> preference set on which every model is judged."""
    repeat: Name
    ensembles: list[Literal["mean", "min"]] = Field(default_factory=list)
    baseline: Name
    """The choice that others are compared with; all other factors are matched."""
    keep_models: bool = False
    """False: a cell's model is deleted once it is judged."""
    scoring: JudgeScoring = JudgeScoring()
    """How reward models are run."""
    judges: JudgeWorkers = JudgeWorkers()
    """Workers that score answers."""

    @model_validator(mode="after")
    def _factors_are_there(self) -> StudyJob:
        if self.repeat not in self.vary:
            raise ValueError(f"repeat: vary has no factor '{self.repeat}'")
        others = [choice for name in self.vary if name != self.repeat for choice in self.vary[name]]
        if self.baseline not in others:
            raise ValueError(f"baseline: vary has no choice '{self.baseline}'; it has {others}")
        if len(set(others)) != len(others):
            raise ValueError("vary: two factors have a choice of the same name")
        if self.ensembles and len(self.vary[self.repeat]) < 2:
            raise ValueError(
                f"ensembles: vary.{self.repeat} has only one choice, but an ensemble needs two or "
                "more"
            )
        if reserved := {"name", "runs", "job"} & set(self.base):
            raise ValueError(f"base: {sorted(reserved)} are set by the study")
        return self


class CurateJob(Job):
    """Preference strength of every training pair, from the votes of cross-fitted reward models.

    `voters` reward models a fold, each trained on the other folds' prompts ("Secrets of RLHF Part
    II", Wang et al. 2024). `policy` says what becomes of pairs whose strength lies in the weakest
    `weakest` share; original labels stay in the file.
    """

    job: Literal["curate"] = "curate"
    data: PairSource
    """The preference pairs to curate."""
    base: dict[str, Any]
    """Config of the voters: a reward-model config without name, runs, seed and training data."""
    folds: Annotated[int, Field(ge=2)] = 3
    """Parts of the prompts; each pair is judged by models that have not seen its prompt."""
    voters: Positive = 1
    policy: Literal["none", "flip", "soft", "flip_soft", "margin", "flip_margin", "drop"] = "none"
    weakest: Fraction = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = 0.1
    """Of policies `soft` and `flip_soft`: probability that the label of a weak pair is wrong."""
    margin_cap: Rate = 3.0
    """Of policies `margin` and `flip_margin`: strengths over their median, up to this."""
    scoring: JudgeScoring = JudgeScoring()
    """How reward models are run."""
    judges: JudgeWorkers = JudgeWorkers()
    """Workers that score answers."""

    @model_validator(mode="after")
    def _smoothing_smooths(self) -> CurateJob:
        if self.policy in ("soft", "flip_soft") and self.label_smoothing == 0:
            raise ValueError(f"policy: {self.policy} needs label_smoothing above 0")
        return self

    @model_validator(mode="after")
    def _the_base_leaves_these_to_curation(self) -> CurateJob:
        if reserved := {"name", "runs", "job", "seed"} & set(self.base):
            raise ValueError(f"base: {sorted(reserved)} are set by the curation")
        data = self.base.get("data") or {}
        if not isinstance(data, dict) or "train" in data:
            raise ValueError("base: data.train is set by the curation; give the pairs in data")
        return self

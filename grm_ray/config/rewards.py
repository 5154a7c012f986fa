"""The schema of a policy's reward: members, aggregate, stages, and what is only watched."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator

from grm_ray.config.schema import Dtype, Name, PathText, Positive, Rate, Section


class Overlong(Section):
    """Up to `penalty` units of reward less for the last `margin` tokens before the limit (DAPO)."""

    margin: Positive
    penalty: Annotated[float, Field(ge=0)] = 1.0


def _finite(parameters: dict[str, Any]) -> None:
    for name, value in parameters.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"{name}: {value} is not a finite number")


class Named(Section):
    """A registered name with its parameters: `{name: uwo, weight: 0.1}`, or the name alone."""

    model_config = ConfigDict(extra="allow", validate_assignment=True, allow_inf_nan=False)

    name: str
    """The registered name."""

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, given: Any) -> Any:
        return {"name": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _numbers_are_finite(self) -> Named:
        _finite(self.parameters)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class RewardStage(Section):
    """`{stage: par, slope: 2}`, or the name alone; stages `rule` and `factor` have a rule:
    `{stage: rule, rule: {name: repetition, n: 4}, weight: -1}`.

    A rule is a registered one, or one's own `module:function` of (prompt, answer).
    """

    model_config = ConfigDict(extra="allow", validate_assignment=True, allow_inf_nan=False)

    stage: str
    """The registered name of the stage."""
    rule: Named | None = None

    @model_validator(mode="before")
    @classmethod
    def _a_name_alone(cls, given: Any) -> Any:
        return {"stage": given} if isinstance(given, str) else given

    @model_validator(mode="after")
    def _a_rule_where_one_is_asked_for(self) -> RewardStage:
        if (self.rule is not None) != (self.stage in ("rule", "factor")):
            raise ValueError(
                "stages rule and factor need the key rule, other stages must not have it"
            )
        _finite(self.parameters)
        return self

    @property
    def parameters(self) -> dict[str, Any]:
        return dict(self.model_extra or {})


class Reward(Section):
    """Proxy reward model, or several, and the true reward that is only ever watched.

    `path`: one reward model, which may be an ensemble by itself (`head.members`). `members`: name
    -> several. Either is joined by `aggregate`: mean, median, wco (minimum), uwo, mean_minus_std,
    entropic, cvar, or conjunction.
    `stages`: from the aggregate to the reward, in order; null: as `normalize`, `clip`,
    `missing_eos_penalty` and `overlong` say, which are then in this order.
    `references`: answers of the starting policy to each prompt, scored before the first step:
    stages par, lsc, centred and centred_tanh compare with them (with their plain scores: rules and
    penalties before such a stage count against the policy alone), and members are brought to one
    scale on them; null: 1 where they are needed.
    `true_reward`: a registered program, one's own `module:function`, or a saved reward model.
    """

    path: PathText | None = None
    members: dict[Name, PathText] = Field(default_factory=dict)
    aggregate: Named = Named(name="mean")
    references: Annotated[int, Field(ge=1, le=256)] | None = None
    stages: list[RewardStage] | None = None
    dtype: Dtype = "auto"
    """Number format of weights and activations; auto: bfloat16 where the hardware supports it."""
    normalize: Literal["none", "first_batch", "running"] = "first_batch"
    """Scale to mean 0 and deviation 1 of the first batch, or of all batches so far."""
    clip: Rate | None = 5.0
    """Largest absolute value of the normalized reward; null: no bound."""
    missing_eos_penalty: Annotated[float, Field(ge=0)] = 0.0
    """Subtracted from the reward of an answer that ran into the length limit."""
    overlong: Overlong | None = None
    """Penalty on answers near the length limit; null: none."""
    true_reward: PathText | None = None
    tokens_per_micro_batch: Positive = 2048
    """Tokens of one forward pass, rows packed without padding: sets the memory."""

    @property
    def models(self) -> dict[str, str]:
        """Config key -> folder or hub id of each member, in order."""
        if self.path is not None:
            return {"reward.path": self.path}
        return {f"reward.members.{name}": path for name, path in self.members.items()}

    @field_validator("members")
    @classmethod
    def _several_are_two(cls, members: dict[str, str]) -> dict[str, str]:
        if len(members) == 1:
            raise ValueError("give 2 or more members; a single reward model belongs in reward.path")
        if len(set(members.values())) < len(members):
            raise ValueError("two members are the same folder: they would never disagree")
        return members

    @model_validator(mode="after")
    def _one_or_several(self) -> Reward:
        if (self.path is None) == (not self.members):
            raise ValueError("give path (one reward model) or members (several), not both")
        return self

    @model_validator(mode="after")
    def _stages_stand_alone(self) -> Reward:
        if self.stages is None:
            return self
        for key in ("normalize", "clip", "missing_eos_penalty", "overlong"):
            # Written out again from a resolved config, a key has its default.
            default = type(self).model_fields[key].default
            if key in self.model_fields_set and getattr(self, key) != default:
                raise ValueError(f"{key}: with stages, give it as one of them; leave this key out")
        return self

    @property
    def all_stages(self) -> list[RewardStage]:
        """`stages`, or those that the other keys stand for."""
        if self.stages is not None:
            return self.stages
        found: list[dict[str, Any]] = []
        if self.normalize != "none":
            found.append({"stage": "normalize", "by": self.normalize})
        if self.clip is not None:
            found.append({"stage": "clip", "bound": self.clip})
        if self.missing_eos_penalty:
            found.append({"stage": "missing_eos", "penalty": self.missing_eos_penalty})
        if self.overlong is not None:
            found.append({"stage": "overlong", **self.overlong.model_dump()})
        return [RewardStage(**stage) for stage in found]

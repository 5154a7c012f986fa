"""The schema of how a policy learns: estimator, losses, and what it is to stay near."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grm_ray.config.schema import (
    Fraction,
    NonNegative,
    Optimizer,
    PathText,
    Positive,
    Rate,
    Section,
)


class Kl(Section):
    """Penalty on leaving the reference; `target` (nats an answer) makes `coefficient` adaptive.

    `place`: in the reward, or beside it in the loss, there with the gradient of the KL itself.
    null: as the papers have it, in the loss for grpo, dr_grpo and chi squared, else in the reward.
    `estimator`: Schulman's k1, k2, k3; or the square root of chi squared over the rows of a batch
    (Laidlaw et al. 2024), in the loss only, in units of the first rewards' standard deviation.
    `reference`: another model of the same vocabulary; null: the policy as it was at the start.
    `ema`: the reference follows the policy, keeping this share of itself each step.
    """

    coefficient: Annotated[float, Field(ge=0)] = 0.05
    """Weight of the KL penalty (beta); with `target` the one at the start."""
    place: Literal["reward", "loss"] | None = None
    estimator: Literal["k1", "k2", "k3", "sqrt_chi_squared"] = "k1"
    target: Rate | None = None
    """KL in nats per answer that the adaptive controller aims at (Ziegler et al. 2019); null:
    fixed."""
    horizon: Positive = 1000
    """Answers over which a full error of the KL moves the coefficient by a fifth."""
    reference: PathText | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _one_reference(self) -> Kl:
        if self.ema is not None and self.reference is not None:
            raise ValueError(
                "ema makes the reference follow the policy, while reference names another model: "
                "set only one of them"
            )
        return self

    @model_validator(mode="after")
    def _zero_cannot_adapt(self) -> Kl:
        if self.target is not None and self.coefficient == 0:
            raise ValueError("target needs a coefficient above 0: the controller multiplies it")
        return self

    @model_validator(mode="after")
    def _no_key_is_set_in_vain(self) -> Kl:
        if self.target is None and self.horizon != type(self).model_fields["horizon"].default:
            raise ValueError(
                "horizon: without target the coefficient is constant, and horizon is not used"
            )
        if self.ema is not None and self.coefficient == 0:
            raise ValueError(
                "ema: with coefficient 0 there is no KL penalty, and the reference is not used"
            )
        return self

    @model_validator(mode="after")
    def _a_root_over_the_batch_is_no_reward(self) -> Kl:
        if self.estimator == "sqrt_chi_squared" and self.place == "reward":
            raise ValueError("estimator sqrt_chi_squared is a loss: leave place out, or set loss")
        return self


# Estimators that give one advantage to all tokens of a row.
BY_ROW = ("rloo", "grpo", "dr_grpo")
Estimator = Literal["gae", "rloo", "grpo", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline"]


class Ppo(Section):
    """`estimator`: of advantages. `gae` has a critic; the others compare with the prompt's other
    answers (`rloo`, `grpo`, `dr_grpo`, `reinforce_pp_baseline`) or with the batch (`reinforce_pp`).
    """

    steps: Positive = 20
    """Steps of the run; each samples new answers and learns from them."""
    epochs: Annotated[int, Field(gt=0, le=10_000)] = 1
    """Passes over a step's rows."""
    minibatches: Positive = 1
    """Updates a pass."""
    estimator: Estimator = "gae"
    clip: Rate = 0.2
    """Of the ratio of new to old probability, to either side of 1."""
    clip_high: Rate | None = None
    """Upwards, where it is to be another one (DAPO's clip-higher)."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """How often |advantage| the loss of a bad token may be (Ye et al. 2020); null: no bound."""
    ratio: Literal["token", "sequence"] = "token"
    """One ratio a token, or one a row (GSPO, whose ratios move so little that clip is about
    3e-4)."""
    importance: Literal["none", "token", "sequence"] | None = None
    """Weighs what older weights wrote by pi_old / pi_engine, up to importance_cap: by one weight a
    token or one a row. null: a token where rollout.staleness is above 0, else none."""
    importance_cap: Annotated[float, Field(ge=1)] = 2.0
    """Upper bound of the importance weights (truncated importance sampling)."""
    old_logprobs: Literal["learner", "engine"] = "learner"
    """Whose log-probs are those before the update. `engine` spares the learner a forward pass of
    the policy; they differ by rounding, which `engine_gap` shows. A critic needs the pass
    anyway."""
    normalize_by: Literal["tokens", "rows", "constant"] | None = None
    """Each token of the update alike, each row alike, or each row over max_new_tokens. null: rows
    for grpo and sequence ratios, constant for dr_grpo, tokens for the others."""
    mask_unfinished: bool = False
    """Rows that ran into the length limit count in their prompt's baseline, but are not learned."""
    entropy_coefficient: Annotated[float, Field(ge=0)] = 0.0
    """Units of reward a nat of entropy, over the whole vocabulary."""
    value_clip: Rate = 0.2
    """PPO's clipping range of the value function, in units of reward."""
    value_coefficient: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the critic's loss beside the policy's."""
    critic_warmup: NonNegative = 0
    """Steps at the start in which the critic alone learns; the backbone stays as it is."""
    gamma: Fraction = 1.0
    """Discount factor per token."""
    lam: Fraction = 0.95
    """Lambda of GAE (Schulman et al. 2016)."""
    whiten_advantages: bool | None = None
    """null: true for gae and the two reinforce_pp."""
    kl: Kl = Kl()
    """KL penalty that keeps the policy near the reference."""
    optimizer: Optimizer = Optimizer()
    """Optimizer of policy and critic."""

    @property
    def penalty_place(self) -> str:
        """`kl.place`, with null resolved."""
        in_loss = self.estimator in ("grpo", "dr_grpo") or self.kl.estimator == "sqrt_chi_squared"
        return self.kl.place or ("loss" if in_loss else "reward")

    @model_validator(mode="after")
    def _no_key_is_set_in_vain(self) -> Ppo:
        unread = [] if self.estimator == "gae" else ["lam", "value_clip", "value_coefficient"]
        if self.estimator in BY_ROW:
            unread.append("gamma")
        for key in unread:
            if getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key}: estimator {self.estimator} does not use it")
        return self

    @model_validator(mode="after")
    def _a_pass_can_be_spared(self) -> Ppo:
        if self.old_logprobs == "engine" and self.estimator == "gae":
            raise ValueError(
                "old_logprobs: engine saves no forward pass with estimator gae, which needs "
                "that pass for its values"
            )
        if self.old_logprobs == "engine" and self.importance not in (None, "none"):
            raise ValueError(
                "importance: with old_logprobs: engine there is nothing to correct, as the old "
                "log-probs are those of the engine"
            )
        return self

    @model_validator(mode="after")
    def _an_average_is_of_whole_weights(self) -> Ppo:
        if self.kl.ema is not None and self.optimizer.zero_stage == 3:
            raise ValueError(
                "kl.ema needs whole weights on every rank: optimizer.zero_stage 2 or less"
            )
        return self

    @model_validator(mode="after")
    def _a_critic_can_be_warmed_up(self) -> Ppo:
        if self.critic_warmup and self.estimator != "gae":
            raise ValueError(f"critic_warmup: estimator {self.estimator} has no critic")
        if self.critic_warmup and not self.value_coefficient:
            raise ValueError("critic_warmup: with value_coefficient 0 the critic does not learn")
        if self.critic_warmup >= self.steps:
            raise ValueError(
                f"critic_warmup: {self.critic_warmup} of {self.steps} steps leave no step to "
                "train the policy"
            )
        if self.critic_warmup and self.optimizer.weight_decay:
            raise ValueError(
                "critic_warmup: optimizer.weight_decay would change the policy during the "
                "warm-up; set it to 0"
            )
        return self

"""From rewards to advantages to the policy's loss: the same lines under Ray and in plain torch.

An estimator has two halves. What compares the answers of one prompt happens where all of them are
known (`row_rewards`, in the driver); what runs along the tokens happens where the tokens are
(`prepare`, on the rank that learns from the row).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch

from grm_ray.config.policy import BY_ROW, Ppo
from grm_ray.config.ppo import Rollout
from grm_ray.objectives.advantages import (
    gae,
    group_relative,
    leave_one_out,
    moments,
    returns_to_go,
    whiten,
)
from grm_ray.objectives.kl import (
    ESTIMATORS,
    Estimator,
    chi_squared,
    kl_loss,
    kl_rewards,
    sqrt_chi_squared_slope,
)
from grm_ray.objectives.policy import (
    clipped_policy_loss,
    clipped_value_loss,
    sequence_logps,
    truncated_importance,
)
from grm_ray.objectives.rows import row_sums

ENGINE_GAP = "policy/engine_gap"

# What `PolicyLoss` measures on its way: shares of means over the update's tokens of all ranks.
FIGURES = (
    "loss/policy",
    "loss/value",
    "loss/penalty",
    "policy/clip_fraction",
    "policy/approx_kl",
    "policy/full_entropy",
    "policy/importance",
    "policy/chi_squared",
    ENGINE_GAP,
    "value/error",
)

# numbers of this rank -> their sums over all ranks
Sum = Callable[[Sequence[float]], list[float]]


@dataclass(frozen=True)
class Before:
    """Answer tokens as they were before the update, row after row: `(T,)` fp32 each.

    Row i is `[offsets_B1[i]:offsets_B1[i + 1]]`.

    Attributes:
        engine_logp_T: log-probs under the weights that wrote them, which may be older ones.
    """

    logp_T: torch.Tensor
    ref_logp_T: torch.Tensor
    values_T: torch.Tensor
    engine_logp_T: torch.Tensor
    offsets_B1: torch.Tensor


@dataclass(frozen=True)
class Targets:
    """What the rows of an update are to be drawn to; `penalty` weighs what is in the loss itself.

    Attributes:
        advantages_T: constants of the policy's loss.
        returns_T: the critic's targets.
        weights_T: importance of what older weights wrote; 1 where nothing is weighed.
        penalty: units of reward; 0 where the penalty is in the reward.
        slope: of the root of chi squared where the update begins; 1 for other penalties.
    """

    before: Before
    advantages_T: torch.Tensor
    returns_T: torch.Tensor
    weights_T: torch.Tensor
    penalty: float
    slope: float = 1.0

    def of(self, at_N: torch.Tensor, offsets_C1: torch.Tensor, device: torch.device) -> Targets:
        """Some whole rows: their tokens stand at `at_N`, and get the offsets `offsets_C1`."""
        before = self.before

        def those(x_T: torch.Tensor) -> torch.Tensor:
            return x_T[at_N].to(device)

        return Targets(
            Before(
                those(before.logp_T),
                those(before.ref_logp_T),
                those(before.values_T),
                those(before.engine_logp_T),
                offsets_C1,
            ),
            those(self.advantages_T),
            those(self.returns_T),
            those(self.weights_T),
            self.penalty,
            self.slope,
        )


class PolicyLoss:
    """What a config's `ppo` section makes of rewards and log-probs.

    Args:
        rollout: how the rows are written: `normalize_by: constant` divides by the most tokens that
            an answer may have, and rows of older weights are weighed.
    """

    def __init__(self, config: Ppo, rollout: Rollout) -> None:
        self._config = config
        self._longest = rollout.max_new_tokens
        self._importance = config.importance or ("token" if rollout.staleness else "none")
        self.has_critic = config.estimator == "gae"
        self.wants_entropy = config.entropy_coefficient > 0
        self._is_root = config.kl.estimator == "sqrt_chi_squared"
        self._kl: Estimator = (
            "k1" if config.kl.estimator == "sqrt_chi_squared" else config.kl.estimator
        )
        self._in_reward = config.penalty_place == "reward"
        # Whitening, and GRPO's scaling, take the rewards' unit out of the advantages.
        self.keeps_unit = not self._whitens and config.estimator != "grpo"

    # ------------------------------------------------------- once before the update

    def row_penalties(self, before: Before) -> torch.Tensor:
        """Each row's penalty (nats, summed over its tokens) where it is in the reward, else 0."""
        if not self._in_reward:
            return torch.zeros(len(before.offsets_B1) - 1)
        return row_sums(
            ESTIMATORS[self._kl](before.logp_T, before.ref_logp_T),
            before.offsets_B1,
        )

    def row_rewards(
        self,
        rewards_B: torch.Tensor,
        penalties_B: torch.Tensor,
        prompts_B: torch.Tensor,
        coefficient: float,
    ) -> torch.Tensor:
        """What each row takes to its rank: its reward, or its advantage. `(B,)` fp32.

        Args:
            rewards_B: final rewards of all rows of the step, without penalty.
            penalties_B: `row_penalties`.
            prompts_B: equal numbers for answers to one prompt.
            coefficient: units of reward a nat.

        Raises:
            ValueError: `rloo`, and a prompt with one answer.
        """
        estimator = self._config.estimator
        if estimator == "reinforce_pp_baseline":
            return group_relative(rewards_B, prompts_B, scale=False)
        if estimator not in BY_ROW:
            return rewards_B.float()
        rewards_B = rewards_B - coefficient * penalties_B
        if estimator == "rloo":
            return leave_one_out(rewards_B, prompts_B)
        return group_relative(rewards_B, prompts_B, scale=estimator == "grpo")

    def prepare(
        self, row_rewards_B: torch.Tensor, before: Before, coefficient: float, over_ranks: Sum
    ) -> Targets:
        """Targets of this rank's rows.

        Args:
            row_rewards_B: this rank's share of `row_rewards`.
            coefficient: of the penalty, units of reward.
            over_ranks: all ranks call it equally often.
        """
        config = self._config
        offsets_B1 = before.offsets_B1
        if config.estimator in BY_ROW:
            advantages_T = returns_T = torch.repeat_interleave(
                row_rewards_B.float(), offsets_B1.diff()
            )
        else:
            rewards_T = kl_rewards(
                row_rewards_B,
                before.logp_T,
                before.ref_logp_T,
                offsets_B1,
                coefficient if self._in_reward else 0.0,
                self._kl if self._in_reward else "k1",
            )
            if self.has_critic:
                advantages_T, returns_T = gae(
                    rewards_T, before.values_T, offsets_B1, config.gamma, config.lam
                )
            else:
                advantages_T = returns_T = returns_to_go(rewards_T, offsets_B1, config.gamma)
        if self._whitens:
            count, total, square = over_ranks(moments(advantages_T))
            if count > 1:
                mean = total / count
                advantages_T = whiten(advantages_T, mean, square / count - mean * mean)
        slope = 1.0
        if self._is_root:
            rows_B = chi_squared(row_sums(before.logp_T - before.ref_logp_T, offsets_B1))
            total, count = over_ranks([float(rows_B.sum()), float(len(rows_B))])
            slope = sqrt_chi_squared_slope(total / max(count, 1.0))
        weights_T = torch.ones_like(before.logp_T)
        if self._importance != "none":
            weights_T = truncated_importance(
                before.logp_T,
                before.engine_logp_T,
                offsets_B1,
                self._importance,
                config.importance_cap,
            )
        penalty = 0.0 if self._in_reward else coefficient
        return Targets(before, advantages_T, returns_T, weights_T, penalty, slope)

    def follow(self, targets: Targets, figures: dict[str, float], over_ranks: Sum) -> Targets:
        """Targets for the next minibatch, after the `figures` that this rank measured of one.

        The root of chi squared is over a whole batch, and its slope is needed before the batch is
        seen: it is the one before's. Of the first it is known from the rows as they were.
        """
        if not self._is_root:
            return targets
        mean = over_ranks([figures["policy/chi_squared"]])[0]
        return replace(targets, slope=sqrt_chi_squared_slope(mean))

    # ------------------------------------------------------------- in every update

    def __call__(
        self,
        logp_T: torch.Tensor,
        values_T: torch.Tensor,
        entropy_T: torch.Tensor | None,
        targets: Targets,
        tokens: float,
        rows: float,
        policy_learns: bool = True,
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """This micro-batch's share of the update's loss, and of its `FIGURES`.

        Args:
            logp_T, values_T, entropy_T: of whole rows, with gradient; entropy where
                `wants_entropy`.
            tokens, rows: of *all* ranks and micro-batches of the update: with local counts, the
                gradient would depend on the split.
            policy_learns: false: the critic alone does.

        Returns:
            A scalar with gradient, and numbers: both sum up over micro-batches and ranks.
        """
        config, before = self._config, targets.before
        offsets_B1, tokens, rows = before.offsets_B1, max(tokens, 1.0), max(rows, 1.0)
        moved_T = logp_T
        if config.ratio == "sequence":
            moved_T = sequence_logps(logp_T, before.logp_T, offsets_B1)
        policy_T, clipped_T = clipped_policy_loss(
            moved_T,
            before.logp_T,
            targets.advantages_T,
            config.clip,
            config.clip_high,
            config.dual_clip,
        )
        policy = self._mean(policy_T * targets.weights_T, offsets_B1, tokens, rows)
        penalty, chi = self._penalty(logp_T, targets, tokens, rows)
        loss = policy + penalty
        entropy = policy.new_zeros(())
        if entropy_T is not None:
            entropy = self._mean(entropy_T, offsets_B1, tokens, rows)
            loss = loss - config.entropy_coefficient * entropy
        loss = loss * float(policy_learns)
        value = (values_T * 0.0).sum()  # without a critic, the value head stays in the graph
        if self.has_critic:
            value = clipped_value_loss(
                values_T, before.values_T, targets.returns_T, config.value_clip
            ).sum()
            loss = loss + config.value_coefficient * value / tokens
        else:
            loss = loss + value
        with torch.no_grad():
            ratio_T = logp_T - before.logp_T
            error = (values_T - targets.returns_T).abs().sum() if self.has_critic else value
            figures = {
                "loss/policy": policy,
                "loss/value": value / tokens,
                "loss/penalty": penalty,
                "policy/clip_fraction": clipped_T.float().sum() / tokens,
                "policy/approx_kl": (ratio_T.exp() - 1 - ratio_T).sum() / tokens,
                "policy/full_entropy": entropy,
                "policy/importance": targets.weights_T.sum() / tokens,
                "policy/chi_squared": chi,
                ENGINE_GAP: (logp_T - before.engine_logp_T).abs().sum() / tokens,
                "value/error": error / tokens,
            }
            return loss, {name: float(figures[name]) for name in self.figures}

    @property
    def figures(self) -> list[str]:
        """Those of `FIGURES` that mean something with this config."""
        without = set()
        if not self.has_critic:
            without |= {"loss/value", "value/error"}
        if self._in_reward:
            without.add("loss/penalty")
        if not self.wants_entropy:
            without.add("policy/full_entropy")
        if self._importance == "none":
            without.add("policy/importance")
        if self._config.old_logprobs == "learner":  # then it is known before the update
            without.add(ENGINE_GAP)
        # Of a root over the batch, the share of a micro-batch is no figure of its own.
        without.add("loss/penalty" if self._is_root else "policy/chi_squared")
        return [name for name in FIGURES if name not in without]

    def _penalty(
        self, logp_T: torch.Tensor, targets: Targets, tokens: float, rows: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Shares of the penalty in the loss, and of the mean chi squared; 0 where there is none."""
        before = targets.before
        penalty = chi = logp_T.new_zeros(())
        if self._is_root:
            rows_B = chi_squared(row_sums(logp_T - before.ref_logp_T, before.offsets_B1))
            chi = rows_B.sum() / rows
            penalty = targets.penalty * targets.slope * chi
        elif not self._in_reward:
            kl_T = kl_loss(logp_T, before.ref_logp_T, self._kl)
            penalty = targets.penalty * self._mean(kl_T, before.offsets_B1, tokens, rows)
        return penalty, chi

    def _mean(
        self, x_T: torch.Tensor, offsets_B1: torch.Tensor, tokens: float, rows: float
    ) -> torch.Tensor:
        """This micro-batch's share of the update's mean, as `normalize_by` weighs its tokens."""
        if self._normalize_by == "tokens":
            return x_T.sum() / tokens
        if self._normalize_by == "constant":
            return x_T.sum() / (rows * self._longest)
        lengths_B = offsets_B1.diff().clamp_min(1).to(x_T.device)
        return (row_sums(x_T, offsets_B1) / lengths_B).sum() / rows

    @property
    def _whitens(self) -> bool:
        wanted = self._config.whiten_advantages
        return self._config.estimator not in BY_ROW if wanted is None else wanted

    @property
    def _normalize_by(self) -> str:
        if self._config.normalize_by is not None:
            return self._config.normalize_by
        if self._config.ratio == "sequence":
            return "rows"
        return {"grpo": "rows", "dr_grpo": "constant"}.get(self._config.estimator, "tokens")

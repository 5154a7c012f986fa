"""From the members' raw scores to the reward that the learner sees, every stage on record.

members -> each on one scale -> aggregate, the proxy -> stages, one after the other. Nothing is
overwritten: what a stage made is a column of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from grm_ray.rewards.aggregate import MemberNormalizer, disagreement
from grm_ray.rewards.reference import conjunction, quantile_reference

Floats = NDArray[np.float64]
PROXY = "proxy"


@dataclass(frozen=True)
class PipelineInput:
    """What a pipeline is told of B answers.

    Attributes:
        scores_BK: raw, of K reward models in their own units.
        finished_B: whether the answer ended itself.
        lengths_B: tokens.
        references_BMK: raw scores of M answers of the starting policy to each row's prompt.
        rules_BR: what each rule of the stages, in their order, says of the answer.
        longest: tokens that an answer may have.
    """

    scores_BK: Floats
    finished_B: Floats
    lengths_B: Floats
    references_BMK: Floats | None = None
    rules_BR: Floats | None = None
    longest: int = 0


@dataclass(frozen=True)
class Stage:
    """One step: `call(rewards_B, **what it asks for, **parameters)`.

    Attributes:
        name: of its column.
        asks: for fields of `PipelineInput`, as tensors, by the names that stages use
            (`rewards.stages`).
        rule: column of `rules_BR` that `rule_B` is; None: the stage has no rule.
    """

    name: str
    call: Callable[..., torch.Tensor]
    asks: frozenset[str]
    parameters: dict[str, Any] = field(default_factory=dict)
    rule: int | None = None


class RewardPipeline:
    """Members, aggregate and stages of a run.

    Args:
        members: K. One member is its own aggregate, on its own scale; several are first brought to
            mean 0 and deviation 1 on reference answers (`fit`).
        aggregate: `(K, B)` -> `(B,)`. None: the conjunction of all members, each centred on a
            quantile of its own references, which needs no common scale.
    """

    def __init__(
        self,
        members: int,
        aggregate: Callable[[torch.Tensor], torch.Tensor] | None,
        stages: Sequence[Stage],
    ) -> None:
        self._members, self._aggregate, self._stages = members, aggregate, list(stages)
        self._scale: MemberNormalizer | None = None
        self._spread = 0.0

    @property
    def spread(self) -> float:
        """Standard deviation of the first batch's rewards, in their units; 1 if they are all alike.

        A penalty's coefficient times this means the same for any reward model, as long as nothing
        later takes the unit out of the rewards.
        """
        return self._spread or 1.0

    def fit(self, references_MK: Floats) -> None:
        """Fix the members' scales on the scores of reference answers.

        Raises:
            ValueError: a member gives all of them one score.
        """
        if self._members > 1 and self._aggregate is not None:
            self._scale = MemberNormalizer.fit(_tensor(references_MK).T)

    def proxy(self, scores_BK: Floats, references_BMK: Floats | None = None) -> Floats:
        """The aggregate `(B,)`, before any stage.

        Args:
            references_BMK: for the conjunction, which compares with them.

        Raises:
            ValueError: a score is not finite.
        """
        scores_BK = np.asarray(scores_BK, dtype=np.float64)
        if not np.isfinite(scores_BK).all():
            raise ValueError(f"{int((~np.isfinite(scores_BK)).sum())} scores are not finite")
        if self._aggregate is None:
            if references_BMK is None:
                raise ValueError("a conjunction compares with reference answers: there are none")
            references_KBM = _tensor(references_BMK).permute(2, 0, 1)
            centre_KB = torch.stack([quantile_reference(x_BM) for x_BM in references_KBM])
            return conjunction(_tensor(scores_BK).T - centre_KB).double().numpy()
        if self._members == 1:
            return scores_BK[:, 0]
        return self._aggregate(self._scaled(scores_BK)).double().numpy()

    def disagreement(self, scores_BK: Floats) -> Floats:
        """Standard deviation over the members `(B,)`, on their common scale; 0 for one member."""
        if self._members == 1 or self._scale is None:
            return np.zeros(len(scores_BK))
        return disagreement(self._scaled(scores_BK)).double().numpy()

    def __call__(self, answers: PipelineInput) -> dict[str, Floats]:
        """The proxy and what each stage makes of it, `(B,)` each, in order; the last is the reward.

        Stages that remember are moved on by it.

        Raises:
            ValueError: a score is not finite, or what a stage refuses.
        """
        rewards_B = _tensor(self.proxy(answers.scores_BK, answers.references_BMK))
        made = {PROXY: rewards_B}
        known = self._known(answers)
        for number, stage in enumerate(self._stages):
            asked = {name: known[name] for name in stage.asks if name != "rule_B"}
            if stage.rule is not None:
                asked["rule_B"] = _tensor(answers.rules_BR)[:, stage.rule]
            try:
                rewards_B = stage.call(rewards_B, **asked, **stage.parameters)
                _check(rewards_B, made[PROXY])
            except (ValueError, TypeError, RuntimeError) as error:
                raise ValueError(f"stage {number + 1} ({stage.name}): {error}") from error
            made[f"{number + 1} {stage.name}"] = rewards_B
        if not self._spread:
            self._spread = _spread(rewards_B)
        return {name: x_B.double().numpy() for name, x_B in made.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values, for `load_state_dict` of a pipeline of the same config."""
        stages = [
            stage.call.state_dict() if hasattr(stage.call, "state_dict") else None
            for stage in self._stages
        ]
        scale = None if self._scale is None else self._scale.state_dict()
        return {"scale": scale, "spread": self._spread, "stages": stages}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._scale = None if state["scale"] is None else MemberNormalizer(**state["scale"])
        self._spread = state["spread"]
        for stage, own in zip(self._stages, state["stages"], strict=True):
            if own is not None:
                stage.call.load_state_dict(own)  # type: ignore[attr-defined]

    def _scaled(self, scores_BK: Floats) -> torch.Tensor:
        assert self._scale is not None, "fit comes first"
        return self._scale.normalize(_tensor(scores_BK).T)

    def _known(self, answers: PipelineInput) -> dict[str, Any]:
        """What stages may ask for; references as the aggregate of their members' scores."""
        known: dict[str, Any] = {
            "finished_B": _tensor(answers.finished_B).bool(),
            "lengths_B": _tensor(answers.lengths_B),
            "longest": answers.longest,
        }
        references_BMK = answers.references_BMK
        if references_BMK is not None and self._aggregate is not None:
            rows, each, members = references_BMK.shape
            flat = self.proxy(references_BMK.reshape(rows * each, members))
            known["references_BM"] = _tensor(flat.reshape(rows, each))
        return known


def _check(rewards_B: Any, before_B: torch.Tensor) -> None:
    """Refuse what no later stage and no learner could use."""
    if not isinstance(rewards_B, torch.Tensor) or rewards_B.shape != before_B.shape:
        raise ValueError(f"gives no reward for each of {len(before_B)} rows")
    if not rewards_B.isfinite().all():
        raise ValueError(f"gives {int((~rewards_B.isfinite()).sum())} rewards that are not finite")


def _spread(rewards_B: torch.Tensor) -> float:
    """Standard deviation; 0 where it is but rounding."""
    rewards_B = rewards_B.double()
    spread = float(rewards_B.std(correction=0))
    return spread if spread > 1e-8 * max(1.0, float(rewards_B.abs().max())) else 0.0


def _tensor(values: Floats | None) -> torch.Tensor:
    assert values is not None
    return torch.as_tensor(np.asarray(values, dtype=np.float64))

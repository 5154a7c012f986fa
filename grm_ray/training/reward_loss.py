"""From packed pairs to the losses of a reward model: the same lines under Ray and in plain torch.

What a loss needs follows from the names of its parameters (`config.registry.wants`): log-probs of
rejected answers, a reference model's log-probs or margins are made only for a loss that asks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from grm_ray.config.errors import ConfigError
from grm_ray.config.registry import resolve, wants
from grm_ray.config.reward_model import PreferenceLoss
from grm_ray.data.packing import Group, pack
from grm_ray.objectives.preference import centering, score_l2
from grm_ray.objectives.regularizers import grm_loss

# What a loss may ask for by the names of its parameters.
GIVEN_TO_PREFERENCE = frozenset({"chosen_B", "rejected_B", "margin_B", "smoothing_B"})
GIVEN_TO_REGRESSION = frozenset({"predicted_BA", "labels_BA"})
GIVEN_TO_REGULARIZER = frozenset(
    f"{answer}_{what}_B"
    for answer in ("chosen", "rejected")
    for what in ("logp", "ref_logp", "tokens")
) | {"beta"}

# (packed, answers whose log-probs are wanted) -> (scores, their summed log-probs)
Forward = Callable[..., tuple[torch.Tensor, torch.Tensor | None]]


@dataclass(frozen=True)
class PairBatch:
    """Some pairs of one step: prompt with (chosen, rejected), and what the data says of each.

    `reference_B2`: summed log-probs of chosen and rejected under the starting model, in nats.
    `draws_BK`: how often each of K members has drawn the pair (a bootstrap has 0, 1, 2, ...).
    """

    groups: Sequence[Group]
    margin_B: np.ndarray  # NaN where the data has none
    smoothing_B: np.ndarray  # NaN: the config's label_smoothing
    reference_B2: np.ndarray | None = None
    draws_BK: np.ndarray | None = None

    def take(self, rows: Sequence[int]) -> PairBatch:
        return PairBatch(
            [self.groups[i] for i in rows],
            self.margin_B[rows],
            self.smoothing_B[rows],
            None if self.reference_B2 is None else self.reference_B2[rows],
            None if self.draws_BK is None else self.draws_BK[rows],
        )


class RewardLoss:
    """The loss of a config: which functions, and what they need.

    Raises:
        ConfigError: an unknown name of a loss or regulariser.
    """

    def __init__(self, config: PreferenceLoss) -> None:
        self._config = config
        self._preference = resolve("preference loss", config.preference, "loss.preference")
        name = config.regularizer if config.alpha > 0 else None
        self._regularizer = (
            None if name is None else resolve("regularizer", name, "loss.regularizer")
        )
        self.regression = config.preference == "regression"
        given = GIVEN_TO_REGRESSION if self.regression else GIVEN_TO_PREFERENCE
        self._wants = _required(self._preference, given, f"preference loss {config.preference}")
        if self._regularizer is not None:
            self._wants |= _required(
                self._regularizer, GIVEN_TO_REGULARIZER, f"regularizer {config.regularizer}"
            )

    @property
    def needs_margin(self) -> bool:
        return "margin_B" in self._wants or self._config.normalize_by == "margins"

    @property
    def weighs_by_margin(self) -> bool:
        """A margin is a weight then, and must not be negative."""
        return self._config.preference == "scaled" or self._config.normalize_by == "margins"

    @property
    def needs_reference(self) -> bool:
        return bool({"chosen_ref_logp_B", "rejected_ref_logp_B"} & self._wants)

    def logprobs_of(self, pairs: int) -> Sequence[int] | None:
        """The answers whose log-probs the loss needs, of `pairs` packed one after another."""
        if self._regularizer is None:
            return None
        both = bool({"rejected_logp_B", "rejected_ref_logp_B"} & self._wants)
        return range(2 * pairs) if both else range(0, 2 * pairs, 2)

    def pairs(
        self, forward: Forward, pairs: PairBatch, device: torch.device | str
    ) -> dict[str, torch.Tensor]:
        """Per-pair values `(B,)`, fp32, not reduced: preference, regularizer, margin of scores."""
        wanted = self.logprobs_of(len(pairs.groups))
        scores, logp = forward(pack(pairs.groups).to(device), wanted)
        return self.of_scores(scores, logp, pairs)

    def of_scores(
        self, scores_A: torch.Tensor, logp_C: torch.Tensor | None, pairs: PairBatch
    ) -> dict[str, torch.Tensor]:
        """The values of `pairs` from scores (chosen, rejected, chosen, ...) and log-probs.

        Of members' scores `(A, K)`, the preference loss is the mean of theirs, each over the pairs
        that the member has drawn; the margin is that of their mean.
        """
        given = self._given(pairs, scores_A.device)
        if logp_C is not None:
            both = len(logp_C) == len(scores_A)
            given["chosen_logp_B"] = logp_C[0::2] if both else logp_C
            if both:
                given["rejected_logp_B"] = logp_C[1::2]
        if scores_A.dim() == 1:
            preference = self._preferred(scores_A, given)
        else:
            of_members_BK = torch.stack([self._preferred(s, given) for s in scores_A.T], dim=1)
            if pairs.draws_BK is not None:
                draws_BK = torch.as_tensor(pairs.draws_BK, device=scores_A.device)
                of_members_BK = of_members_BK * draws_BK.to(of_members_BK.dtype)
            preference, scores_A = of_members_BK.mean(dim=1), scores_A.mean(dim=1)
        regularizer = None if self._regularizer is None else _call(self._regularizer, given)
        return {
            "preference": preference,
            "regularizer": torch.zeros_like(preference) if regularizer is None else regularizer,
            "margin": scores_A[0::2] - scores_A[1::2],
        }

    def _preferred(self, scores_A: torch.Tensor, given: dict[str, Any]) -> torch.Tensor:
        """One member's preference loss `(B,)`, with what holds its scores together."""
        config, chosen, rejected = self._config, scores_A[0::2], scores_A[1::2]
        loss = _call(self._preference, {"chosen_B": chosen, "rejected_B": rejected, **given})
        if config.centering:
            loss = loss + config.centering * centering(chosen, rejected)
        if config.score_l2:
            loss = loss + config.score_l2 * score_l2(chosen, rejected)
        return loss

    def shares(self, values: dict[str, torch.Tensor], totals: tuple[float, float]) -> torch.Tensor:
        """This micro-batch's share of the step's loss: a scalar to go backward from.

        Args:
            totals: what the preference loss and the regulariser are divided by: the step's margins
                (or pairs), and its pairs.
        """
        preference, regularizer = values["preference"].sum() / totals[0], None
        if self._regularizer is None:
            return preference
        regularizer = values["regularizer"].sum() / totals[1]
        return grm_loss(preference, regularizer, self._config.alpha)

    def _given(
        self, pairs: PairBatch, device: torch.device
    ) -> dict[str, torch.Tensor | float | None]:
        def floats(array: np.ndarray) -> torch.Tensor:
            return torch.as_tensor(array, dtype=torch.float32, device=device)

        smoothing = np.where(
            np.isnan(pairs.smoothing_B), self._config.label_smoothing, pairs.smoothing_B
        )
        given: dict[str, torch.Tensor | float | None] = {
            "beta": self._config.beta,
            # A loss that can do without margins gets none: some pairs may have none.
            **({"margin_B": floats(pairs.margin_B)} if self.needs_margin else {}),
            "smoothing_B": floats(smoothing) if smoothing.any() else None,
            "chosen_tokens_B": floats(np.array([len(a[0]) for _, a in pairs.groups])),
            "rejected_tokens_B": floats(np.array([len(a[1]) for _, a in pairs.groups])),
        }
        if pairs.reference_B2 is not None:
            given["chosen_ref_logp_B"] = floats(pairs.reference_B2[:, 0])
            given["rejected_ref_logp_B"] = floats(pairs.reference_B2[:, 1])
        return given


def _required(function: Callable[..., Any], given: frozenset[str], what: str) -> frozenset[str]:
    """What `function` cannot do without.

    Raises:
        ConfigError: it needs something that nobody can bring.
    """
    required = wants(function, optional=False)
    if unknown := sorted(required - given):
        raise ConfigError(
            f"{what}: takes {', '.join(unknown)}, which is not available; a function can take "
            f"{', '.join(sorted(given))}"
        )
    return required


def _call(function: Callable[..., torch.Tensor], given: dict[str, Any]) -> torch.Tensor:
    """`function` with what it names of `given`."""
    return function(**{name: given[name] for name in wants(function) if name in given})


def gradient_ratio(
    loss: RewardLoss, model: Any, pairs: PairBatch, alpha: float, device: torch.device | str
) -> float:
    """How strongly the regulariser pulls at the hidden states beside the preference loss.

    |alpha * d regularizer / d hidden| / |(1 - alpha) * d preference / d hidden|, both summed over
    `pairs`; one forward pass through the backbone without gradient.
    """
    packed = pack(pairs.groups).to(device)
    with torch.no_grad():
        hidden_TH = model.hidden(packed)
    hidden_TH.requires_grad_(True)
    scores_A, logp_C = model.heads(hidden_TH, packed, loss.logprobs_of(len(pairs.groups)))
    values = loss.of_scores(scores_A, logp_C, pairs)
    (of_preference,) = torch.autograd.grad(values["preference"].sum(), hidden_TH, retain_graph=True)
    (of_regularizer,) = torch.autograd.grad(values["regularizer"].sum(), hidden_TH)
    below = float((1 - alpha) * of_preference.float().norm())
    return float(alpha * of_regularizer.float().norm()) / max(below, 1e-12)

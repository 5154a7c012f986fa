"""From the scores `(K, B)` of K reward models, the *members*, to one reward `(B,)` a row.

Members differ in zero and unit: normalise each first (`MemberNormalizer`), or minimum and spread
compare what cannot be compared. All aggregates are fp32, or fp64 where the scores are; a score that
is not finite is refused with a `ValueError` that names the member.

Mean, WCO and UWO: Coste et al. 2023, "Reward Model Ensembles Help Mitigate Overoptimization" (arXiv
2310.02743). Median and mean minus standard deviation: Eisenstein et al. 2023, "Helping or Herding?"
(arXiv 2312.09244). Neither protects against an error that all members share.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch

from grm_ray.objectives.preference import upcast


@dataclass(frozen=True)
class MemberNormalizer:
    """Mean and standard deviation of each member on the same reference answers, fixed for a run.

    Coste et al. 2023 standardise each member on a fixed set of answers. Fixed, because statistics
    that follow the policy would hide that its rewards rise. The state survives JSON bit for bit:
    `MemberNormalizer(**state)` restores it.

    Attributes:
        means: one a member, in that member's unit.
        stds: population standard deviations, all above 0.
    """

    means: list[float]
    stds: list[float]

    @classmethod
    def fit(cls, references_KM: torch.Tensor) -> MemberNormalizer:
        """Measure the members.

        Args:
            references_KM: scores of M answers that all K members scored, 2 or more of them.

        Raises:
            ValueError: a member that gives all answers one score, which leaves nothing to divide
                by.
        """
        references_KM = _checked(references_KM).double()
        flat_K = references_KM.amin(dim=1) == references_KM.amax(dim=1)
        if flat_K.any():
            raise ValueError(
                f"member {int(flat_K.nonzero()[0])} gives the same score to all of "
                f"{references_KM.shape[1]} reference answers: it has no spread to divide by"
            )
        stds_K = references_KM.std(dim=1, correction=0)
        return cls(references_KM.mean(dim=1).tolist(), stds_K.tolist())

    def normalize(self, scores_KB: torch.Tensor) -> torch.Tensor:
        """`(scores - mean) / std`, member by member.

        Raises:
            ValueError: not as many members as were measured.
        """
        scores_KB = _checked(scores_KB)
        if len(scores_KB) != len(self.means):
            raise ValueError(f"scores of {len(scores_KB)} members, but scales of {len(self.means)}")
        means_K, stds_K = scores_KB.new_tensor([self.means, self.stds], dtype=torch.float64)
        return ((scores_KB - means_K[:, None]) / stds_K[:, None]).to(scores_KB.dtype)

    def state_dict(self) -> dict[str, list[float]]:
        return asdict(self)


def mean(scores_KB: torch.Tensor) -> torch.Tensor:
    """`(1/K) sum_k R_k`."""
    return _checked(scores_KB).mean(dim=0)


def median(scores_KB: torch.Tensor) -> torch.Tensor:
    """The middle score; of an even number of members, the mean of the two in the middle."""
    sorted_KB = _checked(scores_KB).sort(dim=0).values
    members = len(sorted_KB)
    return (sorted_KB[(members - 1) // 2] + sorted_KB[members // 2]) / 2


def minimum(scores_KB: torch.Tensor) -> torch.Tensor:
    """`min_k R_k`: worst-case optimisation (WCO). One bad member is enough to spoil it."""
    return _checked(scores_KB).amin(dim=0)


def mean_minus_variance(scores_KB: torch.Tensor, weight: float, ddof: int = 0) -> torch.Tensor:
    """`mean - weight * variance`: uncertainty-weighted optimisation (UWO).

    Unlike the other aggregates it can fall below the lowest score, where members lie far apart.

    Args:
        weight: lambda, in 1 / units of reward, 0 or more (paper: 0.5 for best-of-n, 0.1 for PPO).
        ddof: 0: variance divided by K (the paper's text); 1: by K - 1 (its PPO code).

    Raises:
        ValueError: a negative weight, another `ddof`, or fewer than `ddof + 1` members.
    """
    _check_weight(weight)
    if ddof not in (0, 1):
        raise ValueError(f"ddof must be 0 or 1, not {ddof}")
    scores_KB = _checked(scores_KB)
    if len(scores_KB) <= ddof:
        raise ValueError("a variance with ddof 1 needs 2 members or more")
    return scores_KB.mean(dim=0) - weight * scores_KB.var(dim=0, correction=ddof)


def mean_minus_std(scores_KB: torch.Tensor, weight: float = 1.0) -> torch.Tensor:
    """`mean - weight * std`, with the population standard deviation; paper: weight 1.

    Raises:
        ValueError: a negative weight, which would pay for disagreement.
    """
    _check_weight(weight)
    return mean(scores_KB) - weight * disagreement(scores_KB)


def entropic(scores_KB: torch.Tensor, beta: float) -> torch.Tensor:
    """`-beta log((1/K) sum_k exp(-R_k / beta))`: the entropic risk of the members.

    Minimum for beta towards 0, mean for beta towards infinity, to second order in 1/beta
    `mean_minus_variance` with weight `1 / (2 beta)`; never below the minimum, as that one can be.

    Args:
        beta: units of reward, above 0.

    Raises:
        ValueError: `beta` is not above 0.
    """
    if not beta > 0.0:
        raise ValueError(f"beta must be above 0, not {beta}")
    scores_KB = _checked(scores_KB)
    lowest_B = scores_KB.amin(dim=0)
    # Log-sum-exp with the largest term taken out. expm1 and log1p keep the digits that a large
    # beta, which makes all terms nearly 1, would lose. In fp64 no beta rounds to 0.
    excess_KB = (scores_KB - lowest_B).double() / beta
    above_B = -beta * torch.log1p(torch.expm1(-excess_KB).mean(dim=0))
    return lowest_B + above_B.to(lowest_B.dtype)


def cvar(scores_KB: torch.Tensor, tau: float) -> torch.Tensor:
    """Mean of the lowest share `tau` of the members: conditional value at risk.

    Rockafellar and Uryasev 2000: `max_c { c + (1/tau) mean_k min(R_k - c, 0) }`. The member on the
    boundary counts for the fraction of it that is inside. Mean at `tau` 1, minimum up to 1/K.

    Args:
        tau: above 0, up to 1.

    Raises:
        ValueError: `tau` out of range.
    """
    if not 0.0 < tau <= 1.0:
        raise ValueError(f"tau must be above 0 and at most 1, not {tau}")
    sorted_KB = _checked(scores_KB).sort(dim=0).values
    members = len(sorted_KB)
    inside_K = (tau * members - torch.arange(members).double()).clamp(0.0, 1.0)
    weights_K = (inside_K / inside_K.sum()).to(sorted_KB)
    return (weights_K[:, None] * sorted_KB).sum(dim=0)


def disagreement(scores_KB: torch.Tensor) -> torch.Tensor:
    """Population standard deviation over the members `(B,)`, in units of reward."""
    return _checked(scores_KB).std(dim=0, correction=0)


def _checked(scores_KB: torch.Tensor) -> torch.Tensor:
    if scores_KB.dim() != 2 or not scores_KB.numel():
        raise ValueError(
            f"members' scores have 2 dimensions, none of them empty, "
            f"not shape {tuple(scores_KB.shape)}"
        )
    bad_K = (~scores_KB.isfinite()).sum(dim=1)
    if bad_K.any():
        member = int(bad_K.nonzero()[0])
        raise ValueError(f"member {member} has {int(bad_K[member])} scores that are not finite")
    return upcast(scores_KB)


def _check_weight(weight: float) -> None:
    if not weight >= 0.0:
        raise ValueError(f"the weight of disagreement must be 0 or more, not {weight}")

"""How well scores tell chosen answers from rejected ones: accuracy, length bias, calibration.

Everything rests on contests: one prompt with at least one chosen and one rejected answer, each
with its score. A tie is no win: a model that gives every answer one score has accuracy 0.
Intervals draw whole clusters, since contests of one prompt resemble each other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from grm_ray.study.intervals import SHARE, Interval, bootstrap_mean, paired_difference

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ScoredContest:
    """The answers to one prompt that are judged against one another, n chosen and m rejected.

    Attributes:
        chosen: scores `(n,)`, any unit; what NumPy turns into numbers becomes fp64.
        rejected: scores `(m,)`.
        chosen_lengths: `(n,)` tokens or characters, one unit throughout.
        rejected_lengths: `(m,)`.
        subset: the part of the data set that it belongs to.
        cluster: the prompt; contests that share it are drawn together.

    Raises:
        ValueError: no answer on a side, another number of lengths than of scores, or a number
            that is not finite; the message names subset and prompt.
    """

    chosen: NDArray[np.float64]
    rejected: NDArray[np.float64]
    chosen_lengths: NDArray[np.float64]
    rejected_lengths: NDArray[np.float64]
    subset: str
    cluster: str

    def __post_init__(self) -> None:
        where = f"subset {self.subset!r}, prompt {self.cluster!r}"
        for name in ("chosen", "rejected", "chosen_lengths", "rejected_lengths"):
            numbers = np.asarray(getattr(self, name), dtype=np.float64)
            if numbers.ndim != 1 or numbers.size == 0:
                raise ValueError(f"{where}: {name}: at least one in a row, not {numbers.shape}")
            finite = np.isfinite(numbers)
            if not finite.all():
                row = int(np.argmin(finite))
                raise ValueError(f"{where}: {name}[{row}] is {numbers[row]}, not a finite number")
            object.__setattr__(self, name, numbers)
        for side, lengths in (("chosen", self.chosen_lengths), ("rejected", self.rejected_lengths)):
            if lengths.shape != getattr(self, side).shape:
                scores = getattr(self, side).size
                raise ValueError(f"{where}: {side}: {scores} scores, but {lengths.size} lengths")

    @property
    def margins_nm(self) -> NDArray[np.float64]:
        """Score of each chosen answer less that of each rejected one."""
        return self.chosen[:, None] - self.rejected[None, :]


@dataclass(frozen=True)
class Accuracy:
    """`interval` of the share won, over contests; `ties` among all `pairs` of answers."""

    interval: Interval
    ties: int
    pairs: int


@dataclass(frozen=True)
class OneToMany:
    """Share of contests won outright, the same with ties let pass, and mean reciprocal rank."""

    strict: Interval
    tolerant: Interval
    mrr: Interval


@dataclass(frozen=True)
class LengthCorrelation:
    """Correlations within prompts, and the share of pairs whose longer answer scores higher.

    NaN where undefined.
    """

    pearson: float
    spearman: float
    agreement: Interval


@dataclass(frozen=True, eq=False)
class Calibration:
    """Expected calibration error, and the bins of a reliability plot.

    Attributes:
        ece: in [0, 1], 0 being best.
        edges: `(bins + 1,)` from 0.5 to 1.
        counts: `(bins,)` pairs in each bin; a bin holds its lower edge, the last one both.
        confidence: `(bins,)` mean confidence, NaN where a bin is empty.
        accuracy: `(bins,)` share won, NaN where a bin is empty.
    """

    ece: float
    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]


@dataclass(frozen=True)
class Comparison:
    """Accuracies of two models on the same contests, and the second's gain over the first.

    `discordance` is the mean of the squared gain; for pairs, the share that just one of them wins.
    """

    before: float
    after: float
    difference: Interval
    discordance: float


def by_subset(
    contests: Sequence[ScoredContest], measure: Callable[[Sequence[ScoredContest]], T]
) -> dict[str, T]:
    """`measure` of each subset's contests, in the order in which subsets first appear."""
    groups: dict[str, list[ScoredContest]] = {}
    for contest in contests:
        groups.setdefault(contest.subset, []).append(contest)
    return {subset: measure(group) for subset, group in groups.items()}


def won(contests: Sequence[ScoredContest]) -> NDArray[np.float64]:
    """The share of its pairs that each contest wins, `(contests,)`, of which `accuracy` is the
    mean."""
    return np.array([float((contest.margins_nm > 0).mean()) for contest in contests])


def accuracy(contests: Sequence[ScoredContest]) -> Accuracy:
    """Mean over contests of the share of (chosen, rejected) pairs with `chosen > rejected`.

    One chosen and one rejected answer make it the plain pair accuracy of RewardBench (Lambert et
    al. 2024, arXiv 2403.13787). Every contest weighs the same, however many pairs it has.

    Raises:
        ValueError: no contests.
    """
    margins = [contest.margins_nm for contest in contests]
    return Accuracy(
        _interval(won(contests), contests),
        ties=sum(int((margins_nm == 0).sum()) for margins_nm in margins),
        pairs=sum(margins_nm.size for margins_nm in margins),
    )


def length_baseline(contests: Sequence[ScoredContest]) -> Accuracy:
    """The accuracy of letting the longer answer win: what a model must beat to show more.

    The length heuristic of Singhal et al. 2023 (arXiv 2310.03716). Equal lengths are ties, which
    fail; far below 0.5, the shorter answer is the better guess.

    Raises:
        ValueError: no contests.
    """
    return accuracy(
        [replace(c, chosen=c.chosen_lengths, rejected=c.rejected_lengths) for c in contests]
    )


def length_correlation(contests: Sequence[ScoredContest]) -> LengthCorrelation:
    """How far scores follow length among the answers to one prompt.

    ODIN (Chen et al. 2024, arXiv 2402.07319) gives Pearson's and Spearman's coefficient of score
    and length over all answers. Here each prompt's mean is first taken from both, because a prompt
    that calls for long answers and scores high is no bias, and a Bradley-Terry score means nothing
    across prompts: `corr(s - mean_prompt(s), l - mean_prompt(l))`. Spearman's is Pearson's of
    the ranks of these deviations, equal ones sharing their mean rank.

    `agreement` is the share of (chosen, rejected) pairs whose longer answer has the higher score,
    among those that differ in both, which is `(1 + gamma) / 2` with gamma of Goodman and Kruskal
    1954. Without bias it is near what `length_baseline` says of the data, not near 0.5.

    Coefficients are NaN where no prompt has two different scores, or two different lengths. An
    answer counts as often as it stands in a contest.

    Raises:
        ValueError: no contests.
    """
    if not contests:
        raise ValueError("contests: at least one")
    sizes = [contest.chosen.size + contest.rejected.size for contest in contests]
    _, prompts_B = np.unique([contest.cluster for contest in contests], return_inverse=True)
    prompts_A = np.repeat(prompts_B, sizes)
    scores_A = np.concatenate([x for c in contests for x in (c.chosen, c.rejected)])
    lengths_A = np.concatenate(
        [x for c in contests for x in (c.chosen_lengths, c.rejected_lengths)]
    )
    scores_A, lengths_A = _centered(scores_A, prompts_A), _centered(lengths_A, prompts_A)
    agree, clusters = [], []
    for c in contests:
        longer_nm = np.sign(c.chosen_lengths[:, None] - c.rejected_lengths[None, :])
        products = (np.sign(c.margins_nm) * longer_nm).ravel()
        agree.extend(products[products != 0] > 0)
        clusters.extend([c.cluster] * int(np.count_nonzero(products)))
    nan = float("nan")
    return LengthCorrelation(
        _pearson(scores_A, lengths_A),
        _pearson(_ranks(scores_A), _ranks(lengths_A)),
        bootstrap_mean(agree, clusters, bounds=SHARE) if agree else Interval(nan, nan, nan, 0, 0),
    )


def calibration(margins_B: ArrayLike, bins: int = 10) -> Calibration:
    """Whether `sigma(chosen - rejected)` is the chance that the preference holds.

    A margin d says that the answer with the higher score wins with confidence `sigma(|d|)`, and
    it does where d > 0; without that fold every label would be 1. Over equal bins of [0.5, 1]:

        ece = sum_b (count_b / B) |accuracy_b - confidence_b|

    Naeini et al. 2015; Guo et al. 2017 (arXiv 1706.04599), equation 3. A tie is wrong at
    confidence 0.5, as it is no win in `accuracy`.

    Args:
        margins_B: score of the chosen answer less that of the rejected one, in nats.
        bins: number of bins.

    Raises:
        ValueError: no margins, one that is not finite, or no bins.
    """
    margins_B = np.asarray(margins_B, dtype=np.float64)
    if margins_B.ndim != 1 or margins_B.size == 0:
        raise ValueError(f"margins: one number a row and at least one row, not {margins_B.shape}")
    if not np.isfinite(margins_B).all():
        raise ValueError(f"margins: row {int(np.argmin(np.isfinite(margins_B)))} is not finite")
    if bins < 1:
        raise ValueError(f"bins: at least one, not {bins}")
    confidence_B = 1 / (1 + np.exp(-np.abs(margins_B)))
    edges = np.linspace(0.5, 1, bins + 1)
    bin_B = np.digitize(confidence_B, edges[1:-1])
    counts = np.bincount(bin_B, minlength=bins)
    # 0 / 0 is the NaN of an empty bin.
    with np.errstate(invalid="ignore"):
        confidence = np.bincount(bin_B, confidence_B, minlength=bins) / counts
        won = np.bincount(bin_B, margins_B > 0, minlength=bins) / counts
    ece = float(np.nansum(counts * np.abs(won - confidence)) / margins_B.size)
    return Calibration(ece, edges, counts, confidence, won)


def one_to_many(contests: Sequence[ScoredContest]) -> OneToMany:
    """Whether the right answers come before all wrong ones, and how far up the best of them does.

    RewardMATH (Kim et al. 2024, arXiv 2410.01729): `min(chosen) > max(rejected)`, the same with
    `>=`, and `1 / rank` of the best chosen answer, equal scores of rejected ones ranking before
    it: `rank = 1 + #(rejected >= max(chosen))`. With one chosen among ten, random scores get
    0.1, 0.1 and 0.293 (the tenth harmonic number over ten), one score for all 0, 1 and 0.1.

    Raises:
        ValueError: no contests.
    """
    return OneToMany(*(_interval(values_B, contests) for values_B in ranked(contests)))


def ranked(contests: Sequence[ScoredContest]) -> NDArray[np.float64]:
    """What `one_to_many` takes the means of, `(3, contests)`: strict, tolerant, 1 / rank."""
    worst_B = np.array([float(c.chosen.min() - c.rejected.max()) for c in contests])
    above_B = np.array([int((c.rejected >= c.chosen.max()).sum()) for c in contests])
    return np.stack([worst_B > 0, worst_B >= 0, 1 / (1 + above_B)])


def compare(before: Sequence[ScoredContest], after: Sequence[ScoredContest]) -> Comparison:
    """What a second model's accuracy gains over a first one's, contest by contest.

    `before[i]` and `after[i]` are the same answers, scored by each. Their lengths may differ, as
    the models may count tokens differently.

    Raises:
        ValueError: no contests, or two lists that do not belong together; the first contest that
            differs in prompt, subset or number of answers is named.
    """
    if len(before) != len(after):
        raise ValueError(f"before and after: the same contests, not {len(before)} and {len(after)}")
    for row, (a, b) in enumerate(zip(before, after, strict=True)):
        if _identity(a) != _identity(b):
            raise ValueError(f"contest {row}: before is of {_identity(a)}, after of {_identity(b)}")
    before_B, after_B = won(before), won(after)
    if not before_B.size:
        raise ValueError("contests: at least one")
    return Comparison(
        float(before_B.mean()),
        float(after_B.mean()),
        paired_difference(before_B, after_B, [c.cluster for c in before]),
        float(np.square(after_B - before_B).mean()),
    )


def detectable_difference(
    pairs: int,
    clusters: int,
    accuracy: float,
    discordance: float | None = None,
    correlation: float = 1.0,
    power: float = 0.8,
    level: float = 0.95,
    shares: bool = False,
) -> float:
    """The smallest true gain in accuracy that a paired comparison of this size would show.

    McNemar's test with discordance psi, the share of pairs that just one of the two models wins,
    needs (Connor 1987, Biometrics 43, page 209)

        n = (z_a sqrt(psi) + z_b sqrt(psi - delta^2))^2 / delta^2

    pairs, z_a the normal quantile of (1 + level) / 2 and z_b that of `power`. Solved for delta:

        delta = sqrt(psi) (z_a sqrt(n) + z_b sqrt(n + z_b^2 - z_a^2)) / (n + z_b^2)

    with `n = pairs / (1 + (pairs / clusters - 1) correlation)`, the pairs less what prompts share
    (Kish 1965, design effect).

    Args:
        pairs: pairs that both models judge.
        clusters: prompts that they belong to.
        accuracy: that of the first model, in [0, 1].
        discordance: psi; left out, `2 accuracy (1 - accuracy)`, as if the models erred apart from
            one another. Models of one kind err together: `Comparison.discordance` of an earlier
            run gives a smaller, better number.
        correlation: of the gains of one prompt's pairs, in [0, 1]; 1, the careful choice, counts
            each prompt once.
        power: chance of seeing such a gain, at least 0.5.
        level: of the interval that must leave out 0.
        shares: contests have several answers, so that a gain is a share of pairs and psi the mean
            of its square; then the gain may be as large as sqrt(psi), not psi.

    Returns:
        A share, such as 0.03 for three points; NaN where no gain that this discordance allows
        would show.

    Raises:
        ValueError: a number outside its range.
    """
    if not 1 <= clusters <= pairs:
        raise ValueError(f"clusters: from 1 to the number of pairs, {pairs}, not {clusters}")
    psi = 2 * accuracy * (1 - accuracy) if discordance is None else discordance
    for name, value in (("accuracy", accuracy), ("discordance", psi), ("correlation", correlation)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name}: between 0 and 1, not {value}")
    if not 0.5 <= power < 1 or not 0 < level < 1:
        raise ValueError(f"power in [0.5, 1) and level in (0, 1), not {power} and {level}")
    n = pairs / (1 + (pairs / clusters - 1) * correlation)
    z_a, z_b = NormalDist().inv_cdf((1 + level) / 2), NormalDist().inv_cdf(power)
    if n + z_b**2 < z_a**2:
        return float("nan")
    root = z_a * math.sqrt(n) + z_b * math.sqrt(n + z_b**2 - z_a**2)
    delta = math.sqrt(psi) * root / (n + z_b**2)
    return delta if 0 < delta <= (math.sqrt(psi) if shares else psi) else float("nan")


def _identity(contest: ScoredContest) -> tuple[str, str, int, int]:
    return contest.subset, contest.cluster, contest.chosen.size, contest.rejected.size


def _interval(values_B: NDArray[np.float64], contests: Sequence[ScoredContest]) -> Interval:
    """Of shares, one a contest."""
    if not contests:
        raise ValueError("contests: at least one")
    return bootstrap_mean(values_B, [c.cluster for c in contests], bounds=SHARE)


def _centered(values_A: NDArray[np.float64], groups_A: NDArray[np.intp]) -> NDArray[np.float64]:
    """Values less their group's mean, in units of the largest value.

    Rounded, so that what is constant but for the last bits of its mean is 0 and equal deviations
    are equal; no coefficient depends on the unit.
    """
    scale = float(np.abs(values_A).max()) or 1.0
    means = np.bincount(groups_A, values_A / scale) / np.bincount(groups_A)
    return np.round(values_A / scale - means[groups_A], 12)


def _pearson(x_A: NDArray[np.float64], y_A: NDArray[np.float64]) -> float:
    """Pearson's coefficient; NaN where one is constant."""
    x_A, y_A = x_A - x_A.mean(), y_A - y_A.mean()
    spread = float(np.sqrt((x_A @ x_A) * (y_A @ y_A)))
    return float(np.clip(x_A @ y_A / spread, -1, 1)) if spread else float("nan")


def _ranks(values_A: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from 1, equal values sharing their mean rank."""
    _, index_A, counts = np.unique(values_A, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[index_A]

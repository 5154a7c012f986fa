"""The watch: when the policy begins to fool its reward, say so, and do what the config says."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from grm_ray.config.ppo import Guard
from grm_ray.study.intervals import paired_difference
from grm_ray.study.overoptimization import is_overoptimizing

# Of prompts of which some have no value, as many as can bear a comparison.
FEWEST = 5


class Watch:
    """Compares the held-out proxy with what it should follow, evaluation by evaluation.

    The means alone would fall twice in a row by chance in most runs: an alarm also asks that the
    change over the window, prompt by prompt, has an interval without 0. Compared are the prompts
    that have a value at all evaluations of the window.

    Attributes:
        factor: what the weight of the KL penalty is multiplied by; above 1 after action `lower`.
        stopped: whether the run is to end here.
    """

    def __init__(self, config: Guard | None) -> None:
        self._config = config
        self._proxy: list[float] = []
        self._followed: list[list[float]] = []  # one a prompt, higher is better; NaN: not known
        self._told = False
        self.factor = 1.0
        self.stopped = False

    def look(self, metrics: dict[str, Any], values: dict[str, NDArray[np.float64]]) -> str | None:
        """Take in an evaluation's figures; what there is to say of them, if anything.

        Adds `guard/action` and `guard/reason` to the metrics where it acts. An evaluation in which
        too few prompts have a value is passed over.

        Args:
            values: `true_reward` or `disagreement` of each held-out prompt, in one order.
        """
        config = self._config
        if config is None:
            return None
        sign = -1.0 if config.by == "disagreement" else 1.0
        followed = sign * values[config.by]
        if not np.isfinite(metrics["eval/reward"]):
            return None
        if _too_few(np.isfinite(followed)):
            return self._tell(config, np.isfinite(followed))
        self._proxy.append(metrics["eval/reward"])
        self._followed.append(followed.tolist())
        del self._proxy[: -config.patience - 1], self._followed[: -config.patience - 1]
        followed_EP = np.array(self._followed)
        known_P = np.isfinite(followed_EP).all(axis=0)
        if _too_few(known_P):
            return self._tell(config, known_P)
        means = [float(np.mean(each_P[known_P])) for each_P in followed_EP]
        if not is_overoptimizing(self._proxy, means, config.patience):
            return None
        change = paired_difference(followed_EP[0, known_P], followed_EP[-1, known_P])
        if not change.high < 0:  # one prompt has no interval, and is no evidence
            return None
        moved = "risen" if sign < 0 else "fallen"
        reason = (
            f"over {config.patience} evaluations {config.by} has {moved} "
            f"({sign * means[0]:.3f} to {sign * means[-1]:.3f}) while the reward rose "
            f"({self._proxy[0]:.3f} to {self._proxy[-1]:.3f})"
        )
        metrics |= {"guard/action": config.action, "guard/reason": reason}
        # The next alarm is about what comes after this one.
        del self._proxy[:-1], self._followed[:-1]
        return f"guard: {reason}: {self._act(config)}"

    def _tell(self, config: Guard, known_P: NDArray[np.bool_]) -> str | None:
        """That there is nothing to compare, once a run."""
        if self._told:
            return None
        self._told = True
        return (
            f"guard: only {known_P.sum()} of {len(known_P)} held-out prompts have a {config.by} "
            "to compare: there is no alarm with so few"
        )

    def _act(self, config: Guard) -> str:
        """Do as the config says; in words."""
        if config.action == "lower":
            self.factor *= config.factor
            return f"the KL penalty is now {self.factor:g} times that of the start"
        if config.action == "warn":
            return "the policy may be fooling its reward"
        self.stopped = True
        best = ", with the best policy so far" if config.action == "roll_back" else ""
        return f"the run ends here{best}"

    def state_dict(self) -> dict[str, Any]:
        return {
            "factor": self.factor,
            "stopped": self.stopped,
            "proxy": self._proxy,
            "followed": self._followed,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.factor, self.stopped = state["factor"], state["stopped"]
        self._proxy, self._followed = list(state["proxy"]), list(state["followed"])


def _too_few(known_P: NDArray[np.bool_]) -> bool:
    """Whether what is known of the prompts is too little to compare; of all of them, never."""
    return int(known_P.sum()) < min(FEWEST, len(known_P))

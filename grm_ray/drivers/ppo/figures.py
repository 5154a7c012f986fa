"""Figures of a step's rows, and what in a step's figures the user must be told of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from grm_ray.drivers.ppo.step import Step

# Mean difference of the engine's and the learner's log-prob of a token; rounding in bfloat16 gives
# a few hundredths.
GAP_TO_WARN = 0.2


def row_figures(
    step: Step, proxy: np.ndarray, rewards: np.ndarray, seconds: float
) -> dict[str, Any]:
    """Means over the rows, and rates.

    Args:
        proxy, rewards: of the rows, `(B,)`, before and after all stages; NaN where it is not known.
        seconds: that the step took.
    """
    lengths = step.column("length")
    return {
        "reward": float(np.nanmean(proxy)),
        "reward_std": float(np.nanstd(proxy)),
        "reward_normalized": float(np.nanmean(rewards)),
        "true_reward": step.mean("true_reward"),
        "response_length": float(lengths.mean()),
        "finished": float(step.column("finished").mean()),
        "policy/entropy": float(step.column("entropy").sum() / lengths.sum()),
        "tokens_per_second": float(lengths.sum()) / seconds,
        "rows_per_second": len(lengths) / seconds,
        "rows_refused": sum(row["refused"] is not None for row in step.rows.values()),
    }


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """One line each."""
    lines, step = [], metrics["step"]
    if not metrics["rows_learned"]:
        lines.append(
            f"step {step}: no answer is left to learn from, and the policy is unchanged: "
            "ppo.mask_unfinished leaves out answers that did not end before "
            "rollout.max_new_tokens, and rloo those that are the only scored answer to their "
            "prompt"
        )
    # Rows of older weights differ for that reason.
    if metrics["engine_gap"] > GAP_TO_WARN and not metrics["staleness"]:
        lines.append(
            f"step {step}: engine and learner differ by {metrics['engine_gap']:.2f} nats per "
            "token; they do not run the same model"
        )
    return lines

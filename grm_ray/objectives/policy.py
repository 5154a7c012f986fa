"""PPO's losses, one a token.

The caller reduces: the sum over its tokens divided by the number of tokens of *all* ranks and
micro-batches of the update. Dividing by a local count would weigh a token by how few others happen
to share its micro-batch, so that the gradient would change with the split; with the global count,
any split gives the same gradient.
"""

from __future__ import annotations

import torch


def clipped_policy_loss(
    logp_T: torch.Tensor, old_logp_T: torch.Tensor, advantages_T: torch.Tensor, clip: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """`-min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A)` (Schulman et al. 2017, equation 7).

    Args:
        logp_T: log-probs of the chosen tokens under the policy that learns, with gradient.
        old_logp_T: under the policy that wrote them; `ratio = exp(logp - old_logp)`.
        advantages_T: constants.
        clip: how far from 1 a ratio may go in the direction the advantage asks for.

    Returns:
        `(loss_T, clipped_T)`: fp32, to be divided by the global token count; and where the clipped
        branch is taken, which means that the token has no gradient.
    """
    ratio_T = (logp_T.float() - old_logp_T.float()).exp()
    plain_T = -advantages_T * ratio_T
    clipped_T = -advantages_T * ratio_T.clamp(1.0 - clip, 1.0 + clip)
    return torch.maximum(plain_T, clipped_T), (clipped_T > plain_T).detach()


def clipped_value_loss(
    values_T: torch.Tensor, old_values_T: torch.Tensor, returns_T: torch.Tensor, clip: float
) -> torch.Tensor:
    """`max((V - R)^2, (V_clip - R)^2) / 2`, where V_clip stays within `clip` of the old value.

    The value loss of the PPO code by Dhariwal et al. 2017 (baselines); the paper has no clipping.

    Args:
        values_T: the critic's values, with gradient.
        old_values_T: its values before the update.
        returns_T: the targets R.
        clip: in units of reward.

    Returns:
        `(T,)` fp32, to be divided by the global token count.
    """
    values_T, old_values_T = values_T.float(), old_values_T.float()
    near_T = old_values_T + (values_T - old_values_T).clamp(-clip, clip)
    return 0.5 * torch.maximum((values_T - returns_T).square(), (near_T - returns_T).square())

"""Heads on a hidden state: the reward head and the value head are the same thing."""

from __future__ import annotations

import torch
from torch import nn

from grm_ray.config.schema import Head


class ScalarHead(nn.Module):
    """`(..., H)` -> `(...)`: dropout, then a linear map, or H -> hidden -> ReLU -> 1.

    The linear form has no bias, as transformers' sequence classification has none: a constant
    cancels in every preference loss. With `attributes`, A of them, `(..., H)` -> `(..., A)`; with
    `members` likewise.

    Attributes:
        weights: what the outputs are summed with; empty: there is one, which is the score.
    """

    def __init__(self, hidden_size: int, head: Head) -> None:
        super().__init__()
        self.dropout = nn.Dropout(head.dropout)
        self.outputs = len(head.attributes) or head.members
        self.members = head.members
        mean = (1.0 / head.members,) * head.members if head.members > 1 else ()
        self.weights = tuple(head.weights) or mean
        if head.kind == "linear":
            self.layers = nn.Sequential(nn.Linear(hidden_size, self.outputs, bias=head.bias))
            # Small start: scores begin near 0, so that the first loss is near log 2.
            nn.init.normal_(self.layers[0].weight, std=1 / (hidden_size + 1))
        else:
            self.layers = nn.Sequential(
                nn.Linear(hidden_size, head.hidden), nn.ReLU(), nn.Linear(head.hidden, self.outputs)
            )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Computed in fp32 whatever the stored dtype: a bf16 score has three digits."""
        x = self.dropout(hidden.float())
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                bias = None if layer.bias is None else layer.bias.float()
                x = nn.functional.linear(x, layer.weight.float(), bias)
            else:
                x = layer(x)
        return x if self.weights else x.squeeze(-1)

    def external_parameters(self) -> list[nn.Parameter]:
        """Parameters of other modules that `forward` reads: ZeRO-3 has to be told of them."""
        return list(self.layers.parameters())

    def score(self, outputs: torch.Tensor) -> torch.Tensor:
        """What pairs are compared by: `outputs` itself, or the weighted sum of several."""
        return outputs @ outputs.new_tensor(self.weights) if self.weights else outputs

    def member_scores(self, outputs: torch.Tensor) -> torch.Tensor:
        """`(..., K)`: each member's score; the one score there is, where there are no members."""
        return outputs if self.members > 1 else self.score(outputs)[..., None]

"""Scalar heads on a hidden state: the reward head and the value head are the same thing."""

from __future__ import annotations

import torch
from torch import nn

from grm_ray.config.schema import Head


class ScalarHead(nn.Module):
    """`(..., H)` -> `(...)`: dropout, then a linear map without bias, or H -> hidden -> ReLU -> 1.

    The linear form has no bias, as transformers' sequence classification has none: a constant
    cancels in every preference loss.
    """

    def __init__(self, hidden_size: int, head: Head) -> None:
        super().__init__()
        self.dropout = nn.Dropout(head.dropout)
        if head.kind == "linear":
            self.layers = nn.Sequential(nn.Linear(hidden_size, 1, bias=False))
            # Small start: scores begin near 0, so that the first loss is near log 2.
            nn.init.normal_(self.layers[0].weight, std=1 / (hidden_size + 1))
        else:
            self.layers = nn.Sequential(
                nn.Linear(hidden_size, head.hidden), nn.ReLU(), nn.Linear(head.hidden, 1)
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
        return x.squeeze(-1)

"""What the ranks of an engine do together when a micro-batch does not fit memory."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from grm_ray.config.errors import RunStopped
from grm_ray.models.out_of_memory import is_out_of_memory, release

logger = logging.getLogger(__name__)

# What became of a micro-batch; of several, and of several ranks', the largest counts.
FITS, TOO_LARGE, INDIVISIBLE = 0.0, 1.0, 2.0


class Memory:
    """How many tokens fit.

    Args:
        budget: tokens of a micro-batch.
        all_reduce: of `ZeroEngine`.

    Attributes:
        budget: halved whenever a micro-batch does not fit.
    """

    def __init__(
        self, budget: int, stage: int, all_reduce: Callable[[Sequence[float], Any], list[float]]
    ) -> None:
        self.budget = budget
        self._stage, self._all_reduce = stage, all_reduce
        self._world = torch.distributed.get_world_size()

    def agree(self) -> None:
        """The smallest budget of any rank, on all: passes without gradients shrink one alone."""
        self.budget = -int(self.worst(-self.budget))

    def worst(self, trouble: float) -> float:
        return self._all_reduce([trouble], torch.distributed.ReduceOp.MAX)[0]

    def trouble(
        self, error: RuntimeError, batch: Any, plan: Callable[[int], Sequence[Any]]
    ) -> float:
        """What `error` says of `batch`, which `plan` made; an error of another kind goes on.

        Raises:
            RunStopped: at stage 3 the others wait in the forward pass for this rank's weights.
        """
        if not is_out_of_memory(error):
            raise error
        if self._stage == 3 and self._world > 1:
            raise self._stuck() from error
        return INDIVISIBLE if batch is None or batch in plan(1) else TOO_LARGE

    @contextlib.contextmanager
    def all_or_none(self) -> Iterator[None]:
        """A backward pass in which other ranks wait for this one.

        Raises:
            RunStopped: memory ran out in it.
        """
        try:
            yield
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise self._stuck() from error
            raise

    def shrink(self, trouble: float) -> None:
        """Half the budget, once nothing holds what failed.

        Raises:
            RunStopped: smaller micro-batches would not help.
        """
        release()
        if trouble == INDIVISIBLE:
            raise RunStopped(
                f"out of memory, at {self.budget} tokens a micro-batch, with rows that cannot be "
                "split: lowering tokens_per_micro_batch cannot help; allow only shorter rows, or "
                "save memory (gradient_checkpointing, lora, zero_stage, offload)"
            )
        self.budget //= 2
        logger.warning("out of memory: micro-batches of %d tokens from now on", self.budget)

    def _stuck(self) -> RunStopped:
        return RunStopped(
            f"out of memory, at {self.budget} tokens a micro-batch: ZeRO stage {self._stage} on "
            f"{self._world} ranks cannot try again; set "
            f"optimizer.tokens_per_micro_batch={max(1, self.budget // 2)}"
        )

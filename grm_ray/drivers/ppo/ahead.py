"""What runs ahead of the updates: rows that are asked for early, weights that wait for engines.

Engines get new weights only when they are idle, so that a row is written by one version; and the
rows of a step are asked for only when the weights that engines have are at most `staleness` updates
older than those that will learn from them.
"""

from __future__ import annotations

import time
from typing import Any

from grm_ray.config.ppo import PpoJob
from grm_ray.data.order import EpochOrder
from grm_ray.drivers.ppo.step import Gathering
from grm_ray.drivers.ppo.stream import Stream
from grm_ray.drivers.ppo.workers import PpoCast
from grm_ray.runtime.ledger import uid
from grm_ray.runtime.weights import Version


class Ahead:
    """Begins the gathering of every step, and brings engines every version that they are to have.

    Args:
        prompts: reference to the run's `PROMPTS` table.
        prompt_ids: of its rows.
        incarnation: of the weights' versions.

    Attributes:
        version: what the engines have.
        sync_seconds: how long they have waited for weights, in all.
    """

    def __init__(
        self,
        config: PpoJob,
        cast: PpoCast,
        stream: Stream,
        prompts: Any,
        prompt_ids: list[str],
        incarnation: int,
    ) -> None:
        self._config, self._cast, self._stream = config, cast, stream
        self._prompts, self._ids = prompts, prompt_ids
        self._order = EpochOrder(len(prompt_ids), config.seed, config.data.train.shuffle)
        self.version = Version(incarnation, 0)
        self.sync_seconds = 0.0
        self._export: tuple[Version, list[Any]] | None = None  # what the engines get next
        self._begun: dict[int, tuple[Gathering, list[int]]] = {}
        self._last_begun = 0
        self._issued = self._updated = 0  # updates that the ranks were asked for, and have made

    def restore(self, step: int, incarnation: int) -> None:
        """Go on after `step`, with the weights that the learner has now, under a later incarnation
        than all weights so far; whatever was under way is forgotten."""
        self.version = Version(incarnation, self.version.step)
        self._export, self._begun = None, {}
        self._last_begun = self._issued = self._updated = step
        self._begin_export(step)
        self._push(wait=True)

    def take(self, step: int) -> tuple[Gathering, list[int]]:
        """The step's gathering, and the row of `prompts` that each of its rows answers."""
        self.advance()
        return self._begun.pop(step)

    def advance(self) -> None:
        """Bring idle engines new weights, and ask for the next step's rows.

        Those who have written their share of one step go on with the next, while the longest
        answers are still being written, as long as the weights that they have are new enough.
        """
        if self._stream.idle:
            self._push(wait=False)
        step, rollout = self._last_begun + 1, self._config.rollout
        too_old = step - 1 - self.version.step > rollout.staleness
        if step > self._config.ppo.steps or too_old:
            return
        position = (step - 1) * rollout.prompts_per_step
        rows = [
            (row, uid(self._ids[row], epoch, sample))
            for row, epoch in self._order.take(position, rollout.prompts_per_step)
            for sample in range(rollout.samples_per_prompt)
        ]
        gathering = Gathering(
            self._cast, self._prompts, rows, self.version, self._config.seed, evaluate=True
        )
        self._begun[step] = gathering, [row for row, _ in rows]
        self._last_begun = step
        self._stream.begin(gathering)
        if step - 1 <= self._issued:
            gathering.release()

    def issued(self, step: int) -> None:
        """The ranks have been asked for the step's update: what comes next queues behind it."""
        self._issued = step
        if self._export is None:
            self._begin_export(step)
        if step + 1 in self._begun:
            self._begun[step + 1][0].release()

    def updated(self, step: int) -> None:
        """The ranks have made the step's update."""
        self._updated = step
        if self._stream.idle:
            self._push(wait=True)

    def settle(self) -> None:
        """Until the engines are idle and have the newest weights."""
        self._stream.settle()
        self._push(wait=True)

    def _begin_export(self, step: int) -> tuple[Version, list[Any]]:
        version = Version(self.version.incarnation, step)
        self._export = version, self._cast.begin_export(version)
        return self._export

    def _push(self, wait: bool) -> None:
        """Give idle engines the newest weights, where they are ready or are waited for."""
        while self._export is not None or self._updated == self._issued > self.version.step:
            # None: updates were made while the last weights waited for the engines.
            version, refs = self._export or self._begin_export(self._updated)
            if not wait and not self._cast.transport.all_ready(refs):
                return
            began = time.perf_counter()
            self._cast.send_weights(refs)
            self.version, self._export = version, None
            self.sync_seconds += time.perf_counter() - began

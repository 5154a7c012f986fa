"""What a run makes of its scores: the pipeline, and the answers that it compares with."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grm_ray.config.errors import ConfigError
from grm_ray.config.ppo import PpoJob
from grm_ray.data.order import EpochOrder
from grm_ray.drivers import reward_stages
from grm_ray.drivers.job_key import precision
from grm_ray.drivers.ppo.refused import told_of_gaps, told_of_untrue, without_gaps
from grm_ray.drivers.ppo.step import Gathering, Step
from grm_ray.drivers.ppo.stream import Stream
from grm_ray.drivers.ppo.workers import PpoCast
from grm_ray.rewards.pipeline import PROXY, PipelineInput
from grm_ray.runtime.ledger import uid
from grm_ray.runtime.weights import Version
from grm_ray.study.starc import starc_distance

# A row's uid has an epoch; answers of the starting policy come before the first.
BEFORE = -1
# Prompts that are enough to bring members to one scale.
FOR_SCALES = 512
FORMAT = 1


class PolicyRewards:
    """Proxy and reward of a run's rows.

    Args:
        made_from: what the starting policy's answers and their scores depend on beside the config:
            fingerprints of policy and reward models.
        say: told of answers that have to be made first.
        progress: told how many of them are scored, and of how many.

    Attributes:
        members: names of those who give scores.
    """

    def __init__(
        self,
        config: PpoJob,
        cast: PpoCast,
        stream: Stream,
        made_from: list[str],
        say: Callable[[str], None],
        progress: Callable[[int, int], None],
    ) -> None:
        self._config, self._cast, self._stream = config, cast, stream
        self._made_from, self._say, self._progress = made_from, say, progress
        self.members = reward_stages.member_names(config.reward)
        self._each = reward_stages.references(config.reward, len(self.members))
        self._compares = reward_stages.compares(config.reward)
        self._is_conjunction = config.reward.aggregate.name == reward_stages.CONJUNCTION
        self.pipeline = reward_stages.build(config.reward, len(self.members))
        self._references: dict[bool, np.ndarray] = {}

    def prepare(self, prompts: Any, ids: list[str], held_out: Any, held_out_ids: list[str]) -> None:
        """Have the starting policy answer every prompt, where that is needed and not known yet.

        The engines must have its weights, and be idle.

        Args:
            prompts, held_out: references to `PROMPTS` tables.

        Raises:
            ConfigError: a member gives all reference answers one score.
        """
        if not self._each:
            return
        self._references[False] = self._known_or_made(prompts, ids, self._met(len(ids)))
        if self._is_conjunction:  # whose proxy compares, of whatever answers
            every = list(range(len(held_out_ids)))
            self._references[True] = self._known_or_made(held_out, held_out_ids, every)
        scores_MK = np.concatenate(list(self._references[False]))
        known = scores_MK[np.isfinite(scores_MK).all(axis=1)]
        try:
            self.pipeline.fit(known)
        except ValueError as error:
            names = ", ".join(self.members)
            raise ConfigError(f"reward.members ({names}, from 0): {error}") from None

    def of_step(self, step: Step, prompts: list[int]) -> dict[str, np.ndarray]:
        """The proxy, each stage and at last the reward of a step's rows, in its order `(B,)`.

        NaN for a row that a reward model or rule failed on: stages that look at the others, or
        remember them, know nothing of it.

        Args:
            prompts: row of the training prompts that each answers.
        """
        compared = self._references.get(False) if self._compares else None
        whole = np.flatnonzero(step.learnable)
        made = self.pipeline(
            PipelineInput(
                step.column("scores")[whole],
                step.column("finished")[whole],
                step.column("length")[whole],
                None if compared is None else compared[np.array(prompts)[whole]],
                step.column("rules")[whole],
                self._config.rollout.max_new_tokens,
            )
        )
        columns = {name: np.full(len(prompts), np.nan) for name in made}
        for name, values in made.items():
            columns[name][whole] = values
        return columns

    def of_held_out(self, step: Step) -> np.ndarray:
        """The proxy of answers to the held-out prompts, in their order `(B,)`; says which of them
        have no score or no true reward.

        Raises:
            RunStopped: none of them could be scored.
        """
        scores_BK = step.column("scores")
        answers = "answers to held-out prompts"
        if told := told_of_gaps(step, scores_BK, answers):
            self._say(told)
        if self._config.reward.true_reward and (told := told_of_untrue(step, answers)):
            self._say(told)
        return self.pipeline.proxy(without_gaps(scores_BK), self._references.get(True))

    def figures(self, step: Step, columns: dict[str, np.ndarray]) -> dict[str, float]:
        """What to watch of a step's rewards beside their means."""
        made, apart = {}, self.disagreement(step)
        if apart is not None:
            made["reward/disagreement"] = float(apart.mean())
        if self._config.reward.stages is not None:
            stages = {name: x for name, x in columns.items() if name != PROXY}
            made |= {f"reward/{name}": float(np.nanmean(x)) for name, x in stages.items()}
        each = self._config.rollout.samples_per_prompt
        if self._config.reward.true_reward is not None and each > 1:
            true = step.column("true_reward").reshape(-1, each)
            proxy = columns[PROXY].reshape(-1, each)
            known = np.isfinite(true + proxy).all(axis=1)  # of prompts
            if known.any():
                made["reward/starc"] = starc_distance(proxy[known], true[known])
        return made

    def disagreement(self, step: Step) -> np.ndarray | None:
        """Of the members over each row that has all scores; None where there is but one, or no
        common scale."""
        if len(self.members) == 1 or self._is_conjunction:
            return None
        scores_BK = step.column("scores")
        return self.pipeline.disagreement(scores_BK[np.isfinite(scores_BK).all(axis=1)])

    # ------------------------------------------------------------------ inside

    def _met(self, count: int) -> list[int]:
        """Rows of the training prompts that the run will meet; some, if only scales are needed."""
        config = self._config
        order = EpochOrder(count, config.seed, config.data.train.shuffle)
        met = order.take(0, min(config.ppo.steps * config.rollout.prompts_per_step, count))
        found = [row for row, _ in met]
        if not self._compares:
            found = found[:FOR_SCALES]
        return sorted(set(found))

    def _known_or_made(self, prompts: Any, ids: list[str], rows: list[int]) -> np.ndarray:
        """`(P, M, K)` scores, from the file of an earlier run or of this one's first start.

        Those of prompts that are not in `rows` are NaN.
        """
        wanted = [
            (row, uid(ids[row], BEFORE, sample)) for row in rows for sample in range(self._each)
        ]
        path = self._path([name for _, name in wanted])
        if not path.exists():
            self._say(f"{len(wanted)} answers of the starting policy to compare with: {path}")
            self._make(prompts, wanted, path)
        table = pq.read_table(path, columns=["uid", "scores"])
        scores = np.array(table["scores"].to_pylist(), dtype=np.float64)
        found = np.full((len(ids), self._each, scores.shape[1]), np.nan)
        found[rows] = scores.reshape(len(rows), self._each, -1)
        return found

    def _make(self, prompts: Any, rows: list[tuple[int, str]], path: Path) -> None:
        gathering = Gathering(
            self._cast, prompts, rows, Version(0, 0), self._config.seed, evaluate=False
        )
        self._stream.begin(gathering)
        self._stream.gather(gathering, lambda done: self._progress(done, len(rows)))
        step = gathering.step
        said = step.texts()
        place = {name: i for i, name in enumerate(said["uid"].to_pylist())}
        said = said.take(pa.array([place[name] for name in step.ledger.uids]))
        found = step.column("scores").astype(np.float32)
        if told := told_of_gaps(step, found, "answers to compare with"):
            self._say(told)
            found = without_gaps(found, self._each)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}.part")  # another run may be making the same
        pq.write_table(said.append_column("scores", pa.array(list(found))), part)
        part.replace(path)

    def _path(self, uids: list[str]) -> Path:
        """Named by all that answers and scores depend on, and shared by the runs of one folder."""
        config = self._config
        parts = [
            FORMAT,
            self._made_from,
            uids,
            config.rollout.max_new_tokens,
            config.rollout.temperature,
            config.seed,
            precision(config.policy.dtype, config.workers.rollout),
            precision(config.reward.dtype, config.workers.scorer),
            config.policy.trust_remote_code,
        ]
        key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
        return Path(config.runs).expanduser() / ".references" / f"{key}.parquet"

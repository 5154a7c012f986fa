"""Answers to held-out prompts, and what is kept of any answers to be read later."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from grm_ray.config.ppo import PpoJob
from grm_ray.drivers.ppo.canaries import Canaries
from grm_ray.drivers.ppo.rewards import PolicyRewards
from grm_ray.drivers.ppo.step import Gathering, Step
from grm_ray.drivers.ppo.stream import Stream
from grm_ray.drivers.ppo.workers import PpoCast
from grm_ray.runtime.disk import writing
from grm_ray.runtime.ledger import uid
from grm_ray.runtime.weights import Version
from grm_ray.study.intervals import Interval, bootstrap_mean, paired_difference
from grm_ray.study.monitors import list_rate, repetition


class HeldOut:
    """One answer to each held-out prompt, with the same seeds every time.

    Args:
        folder: the run's.
        prompts: reference to a `PROMPTS` table.
        prompt_ids: of its rows.

    Attributes:
        values: of the last sampled answers, prompt by prompt: true rewards, disagreement; of the
            last answers to the canaries, whether they are right.
    """

    def __init__(
        self,
        config: PpoJob,
        cast: PpoCast,
        stream: Stream,
        folder: Path,
        prompts: Any,
        prompt_ids: list[str],
        rewards: PolicyRewards,
        canaries: Canaries | None = None,
    ) -> None:
        self._config, self._cast, self._stream, self._folder = config, cast, stream, folder
        self._rewards = rewards
        self.values: dict[str, np.ndarray] = {}
        self._prompts, self._ids, self._canaries = prompts, prompt_ids, canaries

    def evaluate(self, name: str, version: Version) -> dict[str, float]:
        """Figures of the answers, which go to `samples/<name>.parquet`.

        Args:
            version: what the engines, which must be idle, have.
        """
        made = self._answer(name, version, "eval/", greedy=False)
        if self._config.evaluation.greedy:
            made |= self._answer(f"{name}-greedy", version, "eval/greedy_", greedy=True)
        if self._canaries is not None:
            figures, self.values["canary"] = self._canaries.evaluate(name, version)
            made |= figures
        return made

    def _answer(self, name: str, version: Version, prefix: str, greedy: bool) -> dict[str, float]:
        rows = [(row, uid(prompt, 0, 0)) for row, prompt in enumerate(self._ids)]
        seed = self._config.seed
        with_kl = self._config.evaluation.kl and not greedy
        gathering = Gathering(
            self._cast, self._prompts, rows, version, seed, evaluate=with_kl, greedy=greedy
        )
        self._stream.begin(gathering)
        gathering.release()
        self._stream.gather(gathering)
        step = gathering.step
        proxy = self._rewards.of_held_out(step)
        said = save_samples(self._folder, step, name, {"reward": proxy}, self._rewards.members)
        answers = said["response"].to_pylist()
        made = {
            f"{prefix}reward": float(proxy.mean()),
            f"{prefix}length": float(step.column("length").mean()),
            f"{prefix}finished": float(step.column("finished").mean()),
            f"{prefix}list_rate": list_rate(answers),
            f"{prefix}repetition": repetition(answers),
        }
        if with_kl:
            made[f"{prefix}kl"] = float(step.column("kl").mean())
        apart = self._rewards.disagreement(step)
        if apart is not None:
            made[f"{prefix}disagreement"] = float(apart.mean())
        if not greedy:
            self.values = {} if apart is None else {"disagreement": apart}
            if self._config.reward.true_reward:
                self.values["true_reward"] = step.column("true_reward")
        true = step.column("true_reward")
        known = true[np.isfinite(true)]
        if len(known):
            interval = bootstrap_mean(known, seed=seed)
            made |= {
                f"{prefix}true_reward": interval.mean,
                f"{prefix}true_reward_low": interval.low,
                f"{prefix}true_reward_high": interval.high,
            }
        return made


def save_samples(
    folder: Path, step: Step, name: str, columns: dict[str, np.ndarray], members: list[str]
) -> pa.Table:
    """What was said and how it was scored, read from the stages' references; returns it.

    Args:
        columns: what became of the scores, in the order of the step's rows.
        members: names of those who gave them.
    """
    said = step.texts()
    uids = said["uid"].to_pylist()
    at = {name: i for i, name in enumerate(step.ledger.uids)}
    order = [at[name] for name in uids]
    if len(members) > 1:
        by_member = zip(members, step.column("scores").T, strict=True)
        columns = columns | {f"member/{member}": scores for member, scores in by_member}
    for column, values in columns.items():
        made = pa.array(values[order], pa.float32(), from_pandas=True)  # NaN: none is known
        said = said.append_column(column, made)
    true = pa.array([step.rows[u]["true_reward"] for u in uids], pa.float32())
    lengths = pa.array([step.rows[u]["length"] for u in uids], pa.int32())
    why = pa.array([step.rows[u]["refused"] for u in uids], pa.string())
    said = said.append_column("true_reward", true).append_column("length", lengths)
    said = said.append_column("refused", why)
    path = folder / "samples" / f"{name}.parquet"
    with writing(path):
        pq.write_table(said, path)
    return said


def change_of_true_reward(folder: Path) -> Interval | None:
    """After minus before, prompt by prompt, as the page has it; None where either has no true
    reward."""
    files = [folder / "samples" / f"{name}.parquet" for name in ("before", "after")]
    if not all(file.exists() for file in files):
        return None
    # In the order of the uids, so that the two pair up.
    columns = ["uid", "prompt", "true_reward"]
    said, now = (pq.read_table(file, columns=columns).sort_by("uid") for file in files)
    before, after = (table["true_reward"].to_numpy().astype(float) for table in (said, now))
    known = np.isfinite(before) & np.isfinite(after)
    if not known.any():
        return None
    prompts = said["prompt"].to_numpy(zero_copy_only=False)
    return paired_difference(before[known], after[known], prompts[known])

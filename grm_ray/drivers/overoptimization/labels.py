"""Labels by a true reward: which of two answers it prefers, and by how much."""

from __future__ import annotations

import hashlib
import inspect
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from grm_ray.config import registry
from grm_ray.config.errors import ConfigError
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.config.schema import Source
from grm_ray.data import files, sources
from grm_ray.data.curate import flipped
from grm_ray.data.records import Contest, as_messages
from grm_ray.data.sources import Quarantine
from grm_ray.drivers import scoring, subjobs
from grm_ray.drivers.job_key import precision
from grm_ray.models.checkpoint import check_reward_model
from grm_ray.reporting.document import put
from grm_ray.workers import rules

# Of a pair's chosen and rejected answer.
Scores = tuple[float, float]


def identity(config: OveroptimizationJob) -> str:
    """Of the true reward: a model's fingerprint, or a program's module, whose text counts."""
    name = config.true_reward
    if registry.is_path(name):
        return check_reward_model(name)["fingerprint"]
    program = registry.resolve("true reward", name)
    try:
        text = inspect.getsource(inspect.getmodule(program) or program)
    except (OSError, TypeError):
        text = ""  # no source to read: the name must do
    return hashlib.sha256(f"{name}\n{text}".encode()).hexdigest()


def label(config: OveroptimizationJob, folder: Path, quarantine: Quarantine) -> dict[str, Path]:
    """`train` and `test` -> a file of pairs in TRL's format, made once; with `flip_seed`,
    `train/<noise>` -> the training pairs with that noise's share of labels turned round.

    `chosen` is what the true reward prefers, `margin` by how much, whichever way a pair stands.

    Raises:
        ConfigError: a source or the true reward cannot be used, or no pair is left.
    """
    truth = identity(config)
    made = {
        name: _labelled(config, name, source, truth, folder, quarantine)
        for name, source in (("train", config.data.train), ("test", config.data.test))
    }
    if config.flip_seed is not None:
        for noise, share in config.flips.items():
            made[f"train/{noise}"] = _flipped(made["train"], share, config.flip_seed)
    return made


def _flipped(file: Path, share: float, seed: int) -> Path:
    """A copy of the labelled pairs with a share of the labels turned round."""
    target = file.with_name(f"{file.stem}-flip{share:g}-{seed}.jsonl")
    if target.is_file():
        return target
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    keys = [json.dumps([r["prompt"], sorted((r["chosen"], r["rejected"]))]).encode() for r in rows]
    for row, turned in zip(rows, flipped(keys, share, seed), strict=True):
        if turned:
            row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    put(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target


def _labelled(
    config: OveroptimizationJob,
    name: str,
    source: Source,
    truth: str,
    folder: Path,
    quarantine: Quarantine,
) -> Path:
    settings = source.model_dump(mode="json", exclude_defaults=True, exclude={"path"})
    dtype = precision(config.scoring.dtype, config.judges)
    made_from = [settings, files.digest(source), truth, config.seed, dtype]
    key = hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()[:16]
    target = folder / f"{name}-{key}.jsonl"
    if target.is_file():
        return target
    contests = list(sources.contests(source, quarantine, config.seed))
    rows = []
    why = "there are no pairs"
    found = _scores(config, name, source, contests, folder, key)
    for contest, (scores, untrue) in zip(contests, found, strict=True):
        row = _row(contest, *scores) if untrue is None else f"no true reward: {untrue}"
        if isinstance(row, str):
            quarantine.add(source.path, 0, row, contest.prompt_id)
            why = row
        else:
            rows.append(row)
    if not rows:
        raise ConfigError(
            f"data.{name}: {source.path}: the true reward ranks no pair of answers ({why})"
        )
    put(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target


def _row(contest: Contest, chosen: float, rejected: float) -> dict[str, Any] | str:
    """A labelled pair, or why there is none."""
    if chosen == rejected:
        return "the true reward is the same for both answers"
    answers = [contest.chosen[0], contest.rejected[0]]
    better, worse = answers if chosen > rejected else reversed(answers)
    return {
        "prompt": as_messages(contest.prompt),
        "chosen": better,
        "rejected": worse,
        "margin": abs(chosen - rejected),
    }


def _scores(
    config: OveroptimizationJob,
    name: str,
    source: Source,
    contests: list[Contest],
    folder: Path,
    key: str,
) -> Iterator[tuple[Scores, str | None]]:
    """The true reward of each contest's first chosen and first rejected answer, or why there is
    none of them: one pair that a program fails on must not end a study."""
    for contest in contests:
        if not isinstance(contest.chosen[0], str) or not isinstance(contest.rejected[0], str):
            raise ConfigError(
                f"data.{name}: {source.path}: dialogues that differ before their last answer"
            )
    if registry.is_path(config.true_reward):
        for scores in _by_model(config, name, source, folder / f"{name}-{key}"):
            refused = any(math.isnan(score) for score in scores)
            yield scores, "refused by a chat template" if refused else None
        return
    program = registry.resolve("true reward", config.true_reward)
    for contest in contests:
        prompt = contest.prompt[-1][1]  # as PPO and best-of-n ask a program
        answers = [str(contest.chosen[0]), str(contest.rejected[0])]
        (chosen, rejected), reasons = rules.each(program, [prompt] * 2, answers)
        yield (chosen, rejected), next((why for why in reasons if why is not None), None)


def _by_model(
    config: OveroptimizationJob, name: str, source: Source, folder: Path
) -> Iterator[Scores]:
    """By a job of its own, which is gone on with; its scores come in the order of the contests."""
    judged = subjobs.judge(
        Path(config.true_reward),
        {name: source},
        config.scoring,
        config.judges,
        folder,
        like=config,
    )
    (file,) = (judged / "scores" / "model").glob(f"{name}-*.parquet")
    found: dict[int, dict[bool, float]] = {}
    for row in scoring.read(file).to_pylist():
        found.setdefault(row["contest"], {}).setdefault(row["chosen"], row["score"])
    for number in sorted(found):
        yield found[number][True], found[number][False]

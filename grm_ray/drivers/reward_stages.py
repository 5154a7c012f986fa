"""A config's reward section as a pipeline: names become functions, mistakes become messages."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from grm_ray.config import registry
from grm_ray.config.errors import ConfigError
from grm_ray.config.rewards import Named, Reward, RewardStage
from grm_ray.models.checkpoint import check_reward_model
from grm_ray.rewards.pipeline import PipelineInput, RewardPipeline, Stage
from grm_ray.workers import rules

CONJUNCTION = "conjunction"
# After these a reward is on another scale than the references' scores.
RESCALING = frozenset({"normalize", "range", "clip", "clip_to_spread", "tanh", "factor"})
# Trials of a pipeline on made-up answers, and how many each has.
_TRIALS, _ROWS = 8, 16


def member_names(reward: Reward) -> list[str]:
    """Whoever gives scores, in their order: reward models, or the members of their heads.

    One that cannot be looked at from here counts as one.
    """
    found = []
    for key, path in reward.models.items():
        name, count = key.rpartition(".")[2], 1
        if Path(path).expanduser().is_dir():
            count = check_reward_model(path)["head"].get("members", 1)
        found += [name] if count == 1 else [f"{name}/{i}" for i in range(count)]
    return found


def build(reward: Reward, members: int) -> RewardPipeline:
    """The pipeline, without any state.

    Args:
        members: of `member_names`.

    Raises:
        ConfigError: an unknown name or parameter, or a value that a stage refuses.
    """
    stages, count = [], 0
    for number, given in enumerate(reward.all_stages):
        where = f"reward.stages[{number}] ({given.stage})"
        function, parameters = _function(given), given.parameters
        registry.check_parameters(where, "reward stage", function, parameters)
        if inspect.isclass(function):
            try:
                call, parameters = function(**parameters), {}
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{where}: {error}") from None
        else:
            call = function
        has_rule = given.rule is not None
        stages.append(
            Stage(given.stage, call, _asks(function), parameters, count if has_rule else None)
        )
        count += has_rule
    return RewardPipeline(members, _aggregate(reward), stages)


def check(reward: Reward, longest: int, members: int) -> None:
    """Try the pipeline on made-up answers, so that what it refuses is refused now.

    Args:
        members: of `member_names`.
        longest: tokens that an answer may have.

    Raises:
        ConfigError: as `build`, or what a stage says of its parameters.
    """
    if members == 1 and (reward.aggregate.name != "mean" or reward.aggregate.parameters):
        raise ConfigError("reward.aggregate: a single score needs no aggregate; give members")
    compared, named = references(reward, members), rules_of(reward)
    for described, rule in zip(named, rules.resolve(named), strict=True):
        # A service is not asked, only its parameters are looked at.
        name = described["name"]
        tried = ([], []) if name == "http" else (["What is it?"], ["It is a cat."])
        try:
            if ":" in name:  # in a run an answer that it fails on is left out; here it is not odd
                registry.resolve("rule", name)(tried[0][0], tried[1][0])
            if not np.isfinite(rules.values([rule], *tried)).all():
                raise ValueError("it returns no number for a plain answer")
        except Exception as error:  # one's own function may raise anything
            raise ConfigError(f"reward.stages: rule {described['name']}: {error}") from None
    rng = np.random.default_rng(0)
    for _ in range(_TRIALS):
        pipeline, scores = build(reward, members), rng.normal(size=(_ROWS, members))
        try:
            pipeline.fit(scores)
            pipeline(
                PipelineInput(
                    scores,
                    rng.integers(0, 2, _ROWS).astype(float),
                    rng.integers(1, longest + 1, _ROWS).astype(float),
                    rng.normal(size=(_ROWS, min(compared, 4), members)) if compared else None,
                    rng.random((_ROWS, len(named))),
                    longest,
                )
            )
        except Exception as error:
            raise ConfigError(f"reward: {error}") from None


def references(reward: Reward, members: int) -> int:
    """Answers of the starting policy to each prompt that the reward compares with; 0: none.

    Raises:
        ConfigError: they are asked for in vain, or twice.
    """
    asking = [(n, s) for n, s in enumerate(reward.all_stages) if "references_BM" in _asks_of(s)]
    comparing = [stage.stage for _, stage in asking]
    if asking:
        others = [s.stage for s in reward.all_stages[: asking[-1][0]]]
        rescaled = [s for s in others if s in RESCALING or s in comparing[:-1]]
        if rescaled:
            raise ConfigError(
                f"reward.stages: {comparing[-1]} compares with the references' own scores, but "
                f"{rescaled[0]} puts the reward on another scale; put {comparing[-1]} before it"
            )
    if comparing and reward.aggregate.name == CONJUNCTION:
        raise ConfigError(
            f"reward.stages: {comparing[0]} compares with references, which the conjunction "
            "already does; leave it out"
        )
    alone = [s.stage for _, s in asking if s.stage == "lsc"]
    if reward.aggregate.name == CONJUNCTION:
        alone = [CONJUNCTION]
    if alone and (reward.references or 1) < 2:
        raise ConfigError(
            f"reward.references: {alone[0]} takes a quantile of them: give 2 or more, preferably 8"
        )
    needed = bool(comparing) or members > 1
    if reward.references is not None and not needed:
        raise ConfigError(
            "reward.references: no stage compares with them (par, lsc, centred and centred_tanh "
            "do), and a single reward model needs no common scale; leave it out"
        )
    return (reward.references or 1) if needed else 0


def compares(reward: Reward) -> bool:
    """Whether each answer is compared with references to its own prompt."""
    return reward.aggregate.name == CONJUNCTION or any(
        "references_BM" in _asks_of(stage) for stage in reward.all_stages
    )


def rules_of(reward: Reward) -> list[dict[str, Any]]:
    """The stages' rules, in order, as `workers.rules` takes them."""
    return [
        {"name": stage.rule.name, **stage.rule.parameters}
        for stage in reward.all_stages
        if stage.rule is not None
    ]


def aggregate(where: str, given: Named) -> Callable[..., Any]:
    """A registered aggregate with its parameters.

    Args:
        where: the config's key, for the message.

    Raises:
        ConfigError: an unknown name or parameter.
    """
    function = registry.resolve("aggregate", given.name)
    where = f"{where} ({given.name})"
    registry.check_parameters(where, "aggregate", function, given.parameters)
    return partial(function, **given.parameters)


def _aggregate(reward: Reward) -> Callable[..., Any] | None:
    """None: the conjunction."""
    if reward.aggregate.name == CONJUNCTION:
        if reward.aggregate.parameters:
            raise ConfigError("reward.aggregate: conjunction has no parameters")
        return None
    return aggregate("reward.aggregate", reward.aggregate)


def _function(stage: RewardStage) -> Callable[..., Any]:
    return registry.resolve("reward stage", stage.stage)


def _asks_of(stage: RewardStage) -> frozenset[str]:
    return _asks(_function(stage))


def _asks(function: Callable[..., Any]) -> frozenset[str]:
    """What a stage wants to know of the answers."""
    called = function.__call__ if inspect.isclass(function) else function
    return registry.wants(called) & registry.GIVEN["reward stage"]

"""The schema of `grm_ray.run_overoptimization`: proxies of a true reward, searched by best-of-n and
by PPO."""

from __future__ import annotations

import fnmatch
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from grm_ray.config.judging import JudgeScoring, JudgeWorkers
from grm_ray.config.rewards import Named
from grm_ray.config.schema import Fraction, Job, Name, PathText, Positive, Section, Source

Changes = dict[str, Any]


class Labelled(Section):
    """Pairs whose labels are given anew by the true reward.

    `train`: what every reward model learns from, with the shares of wrong labels of `flips`.
    `test`: what their accuracy is measured on, never with wrong labels.
    """

    train: Source
    test: Source


class Proxy(Section):
    """A reward that the policy is optimised against.

    `model`: each repetition has the reward model of its own seed. `ensemble_of`: the reward models
    of all seeds are one reward, joined by `aggregate`, each on a common scale; then repetitions
    differ in the policy's seed only, and best-of-n has one.
    `ppo`: changes of the PPO config, `reward.stages` for example.
    """

    model: Name | None = None
    ensemble_of: Name | None = None
    aggregate: Named = Named(name="mean")
    ppo: Changes = Field(default_factory=dict)

    @property
    def trained(self) -> str:
        """The entry of `models` that it is made of."""
        return self.model or self.ensemble_of or ""

    @model_validator(mode="after")
    def _one_or_all(self) -> Proxy:
        if (self.model is None) == (self.ensemble_of is None):
            raise ValueError(
                "give either model (one model per seed) or ensemble_of (all seeds as one ensemble)"
            )
        if self.model is not None and (self.aggregate.name != "mean" or self.aggregate.parameters):
            raise ValueError("aggregate: only for ensemble_of; a single score needs no aggregate")
        return self


class OveroptimizationJob(Job):
    """Does the policy get better, or does it fool its reward model, and which remedy helps?

    `true_reward`: a registered program, one's own `module:function`, or a saved reward model (a
    larger one): it labels the pairs, and is what best-of-n and PPO are judged by.
    `flips`: name -> share of the training pairs whose label is flipped. Which ones is drawn by
    `flip_seed`, once for all models; null: by the seed of each training, so that an ensemble's
    members have other wrong labels each and average them out.
    `seeds`: of the reward models' trainings; the first `ppo_seeds` of them are PPO's too.
    `reward_model`, `best_of_n`, `ppo`: configs of these jobs, without what the study sets (names,
    seeds, training pairs, reward models, true reward); null: without that part.
    `models`: name -> changes of `reward_model`, key.path: value. `proxies`: what is searched.
    `baseline`: the proxy that others are compared with.
    `only`: what to compute now, patterns of `noise/proxy` (`flipped_25/*`); null: all. The page has
    what was computed before, too.
    `at_once`: jobs beside one another; null: as many as have room.
    `scored_together`: reward models that one best-of-n job holds in each scorer; null: all.
    """

    job: Literal["overoptimization"] = "overoptimization"
    true_reward: PathText
    data: Labelled
    """The pairs to train on and to measure accuracy on."""
    flips: Annotated[dict[Name, Fraction], Field(min_length=1)]
    seeds: Annotated[list[Annotated[int, Field(ge=0, lt=2**32)]], Field(min_length=1)]
    ppo_seeds: Positive = 2
    flip_seed: Annotated[int, Field(ge=0, lt=2**32)] | None = 0
    reward_model: dict[str, Any]
    models: Annotated[dict[Name, Changes], Field(min_length=1)]
    proxies: Annotated[dict[Name, Proxy], Field(min_length=1)]
    baseline: Name
    best_of_n: dict[str, Any] | None = None
    ppo: dict[str, Any] | None = None
    at_once: Positive | None = None
    only: Annotated[list[str], Field(min_length=1)] | None = None
    scored_together: Positive | None = None
    scoring: JudgeScoring = JudgeScoring()
    """How a reward model that is the true reward scores the pairs."""
    judges: JudgeWorkers = JudgeWorkers()
    """Workers that score answers with a true reward that is a reward model."""

    def wants(self, noise: str, proxy: str) -> bool:
        """Whether `only` asks for it."""
        patterns = ["*"] if self.only is None else self.only
        return any(fnmatch.fnmatchcase(f"{noise}/{proxy}", pattern) for pattern in patterns)

    @model_validator(mode="after")
    def _names_are_there(self) -> OveroptimizationJob:
        for name, proxy in self.proxies.items():
            if proxy.trained not in self.models:
                raise ValueError(
                    f"proxies.{name}: models has no '{proxy.trained}'; it has {list(self.models)}"
                )
        for pattern in self.only or []:
            names = [f"{noise}/{proxy}" for noise in self.flips for proxy in self.proxies]
            if not fnmatch.filter(names, pattern):
                raise ValueError(f"only: '{pattern}' matches none of {names}")
        if self.baseline not in self.proxies:
            raise ValueError(
                f"baseline: proxies has no '{self.baseline}'; it has {list(self.proxies)}"
            )
        return self

    @model_validator(mode="after")
    def _seeds_suffice(self) -> OveroptimizationJob:
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: a seed is listed twice, and both would be the same training")
        if self.ppo_seeds > len(self.seeds):
            raise ValueError(
                f"ppo_seeds: {self.ppo_seeds} is more than the {len(self.seeds)} seeds"
            )
        ensembles = [n for n, proxy in self.proxies.items() if proxy.ensemble_of is not None]
        if ensembles and len(self.seeds) < 2:
            raise ValueError(f"proxies.{ensembles[0]}: an ensemble needs two seeds or more")
        return self

    @model_validator(mode="after")
    def _the_study_sets_these(self) -> OveroptimizationJob:
        own = {
            "reward_model": ("data.train", "data.eval", "data.holdout"),
            "best_of_n": ("proxies", "ensembles", "true_reward"),
            "ppo": ("reward.path", "reward.members", "reward.aggregate", "reward.true_reward"),
        }
        for part, keys in own.items():
            given = getattr(self, part) or {}
            for key in ("name", "runs", "seed", "job", "tracking", *keys):
                if _has(given, key):
                    raise ValueError(f"{part}.{key} is set by the study")
        for name, changes in self.models.items():
            if "seed" in changes or any(key.startswith("data.") for key in changes):
                raise ValueError(f"models.{name}: seed and data are set by the study")
        for name, proxy in self.proxies.items():
            for key in proxy.ppo:
                if not key.startswith(("ppo.", "reward.", "guard", "checkpoint.", "workers.")):
                    raise ValueError(
                        f"proxies.{name}.ppo.{key}: proxies are compared on the same policy, "
                        "prompts and evaluations; change keys of ppo, reward, guard, checkpoint "
                        "or workers"
                    )
            if proxy.aggregate.name == "conjunction" and self.best_of_n is not None:
                raise ValueError(
                    f"proxies.{name}.aggregate: conjunction compares with references, which "
                    "best-of-n does not have; set best_of_n: null"
                )
        if self.best_of_n is None and self.ppo is None:
            raise ValueError("give best_of_n, ppo, or both")
        return self


def _has(config: dict[str, Any], key: str) -> bool:
    """Whether `key.path` is written in a config that is not validated yet."""
    first, _, rest = key.partition(".")
    if first not in config:
        return False
    inside = config[first]
    return True if not rest else isinstance(inside, dict) and _has(inside, rest)

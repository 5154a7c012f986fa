"""The schema of `grm_ray.bon`: best of n answers, chosen by proxies, judged by the true reward."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from grm_ray.config.ppo import Engine, Rollout, RolloutWorkers, ScorerWorkers
from grm_ray.config.rewards import Named
from grm_ray.config.schema import (
    Job,
    Model,
    Name,
    PathText,
    Positive,
    Rate,
    Scoring,
    Section,
    Source,
    Temperature,
    of_prompts,
)


class Prompts(Section):
    """Prompts that the policy answers."""

    prompts: Source
    """Where the prompts are read from."""
    max_prompt_length: Positive = 256
    """In tokens; longer prompts are left out, and listed in quarantine.jsonl."""

    @field_validator("prompts")
    @classmethod
    def _no_key_is_set_in_vain(cls, source: Source) -> Source | None:
        return of_prompts(source)


class Sampling(Section):
    """How the policy answers: N = `samples_per_prompt` answers to each prompt."""

    samples_per_prompt: Annotated[int, Field(ge=2)] = 16
    max_new_tokens: Positive = 64
    """Longest answer, in tokens."""
    temperature: Temperature = 1.0
    """Of the softmax that tokens are sampled from."""
    engine: Engine = Engine()
    """vLLM engine of each rollout worker."""

    def rollout(self) -> Rollout:
        """The same for a rollout worker, which sends on one prompt's answers at a time: they are
        scored in each other's company alone, so that scores do not hang on who else came by."""
        return Rollout(
            samples_per_prompt=self.samples_per_prompt,
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            rows_per_batch=1,
            engine=self.engine,
        )


class ProxyEnsemble(Section):
    """Proxies that choose together: the scores of each are brought to mean 0 and deviation 1 over
    all answers of the run, then joined as `reward.aggregate` of a PPO run joins its members."""

    members: Annotated[list[Name], Field(min_length=2)]
    """Names of two or more proxies."""
    aggregate: Named = Named(name="mean")
    """How the scores of the members become one, with its parameters."""


class BestOfNWorkers(Section):
    """Workers of each role."""

    rollout: RolloutWorkers = RolloutWorkers()
    """Workers that generate answers, one vLLM engine each."""
    scorer: ScorerWorkers = ScorerWorkers()
    """Workers that score answers by all proxies and the true reward."""


class BestOfNJob(Job):
    """What choosing the best of n answers by a proxy does to the true reward.

    `policy`: `trust_remote_code` holds for the reward models too.
    `proxies`: name -> saved reward model, folder or hub id; all score the same answers.
    `ensembles`: name -> several of them as one more.
    `true_reward`: a registered program, one's own `module:function`, or a saved reward model.
    `ns`: sizes of choice; 1 and N are always among them. null: all powers of two below N.
    `betas`: temperatures of soft best-of-n, in standard deviations of the proxy's score among the
    answers to one prompt, so that they mean the same for every proxy.
    `prompts_per_shard`: what is finished at once, in one file; a restart makes no finished one
    again.
    """

    job: Literal["bon"] = "bon"
    policy: Model
    data: Prompts
    """Which prompts are answered."""
    rollout: Sampling = Sampling()
    """How the answers are sampled."""
    proxies: Annotated[dict[Name, PathText], Field(min_length=1)]
    ensembles: dict[Name, ProxyEnsemble] = Field(default_factory=dict)
    true_reward: PathText
    ns: list[Positive] | None = None
    betas: list[Rate] = Field(default=[2.0, 1.0, 0.5, 0.25])
    scoring: Scoring = Scoring()
    """How reward models are run."""
    workers: BestOfNWorkers = BestOfNWorkers()
    """Workers of each role."""
    prompts_per_shard: Positive = 64

    @property
    def choosers(self) -> list[str]:
        """Whoever chooses: the proxies, then their ensembles."""
        return [*self.proxies, *self.ensembles]

    @property
    def sizes(self) -> list[int]:
        """`ns` with null resolved, ascending, from 1 to N."""
        most = self.rollout.samples_per_prompt
        powers = [2**k for k in range(most.bit_length()) if 2**k < most]
        return sorted({1, most, *(powers if self.ns is None else self.ns)})

    @model_validator(mode="after")
    def _a_choice_has_so_many_answers(self) -> BestOfNJob:
        most = self.rollout.samples_per_prompt
        if self.ns is not None and max(self.ns, default=1) > most:
            raise ValueError(
                f"ns: {max(self.ns)} is more than the {most} answers of a prompt; raise "
                "rollout.samples_per_prompt"
            )
        return self

    @model_validator(mode="after")
    def _members_are_proxies(self) -> BestOfNJob:
        for name, ensemble in self.ensembles.items():
            if name in self.proxies:
                raise ValueError(f"ensembles: '{name}' is already the name of a proxy")
            unknown = [m for m in ensemble.members if m not in self.proxies]
            if unknown:
                raise ValueError(f"ensembles.{name}.members: {unknown} are not in proxies")
            if len(set(ensemble.members)) != len(ensemble.members):
                raise ValueError(f"ensembles.{name}.members: a proxy is listed twice")
        return self

    @model_validator(mode="after")
    def _the_policy_is_only_asked(self) -> BestOfNJob:
        if self.policy.lora is not None or self.policy.frozen or self.policy.gradient_checkpointing:
            raise ValueError(
                "policy: nothing is trained here; give only path, dtype and trust_remote_code"
            )
        return self

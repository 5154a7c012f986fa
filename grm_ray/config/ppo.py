"""The schema of `grm_ray.ppo`: rollouts, reward, PPO and its workers."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from grm_ray.config.policy import Ppo
from grm_ray.config.rewards import Reward
from grm_ray.config.schema import (
    Checkpoint,
    Count,
    Cpus,
    Fraction,
    Head,
    Job,
    Model,
    NonNegative,
    Positive,
    Rate,
    Section,
    Source,
    Temperature,
    Workers,
    of_prompts,
)


class PromptData(Section):
    """Prompts that the policy learns from, and held-out ones."""

    train: Source
    """Where training prompts are read from."""
    eval: Source | None = None
    """Held-out prompts: the first evaluation.prompts of the file, whatever `shuffle` says. null:
    taken from train."""
    max_prompt_length: Positive = 256
    """Longer prompts are left out, and listed in quarantine.jsonl."""

    @field_validator("train", "eval")
    @classmethod
    def _no_key_is_set_in_vain(cls, source: Source | None) -> Source | None:
        return of_prompts(source)


class Engine(Section):
    """vLLM engine options; see vLLM's own documentation for their meaning."""

    max_num_seqs: Positive = 32
    """Answers that one engine generates at a time."""
    enforce_eager: bool = True
    """False: vLLM compiles, which takes a while at each start."""
    kv_cache_gb: Rate = 1.0
    """On a CPU, in whole GiB."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.9
    """On a GPU: the share of its memory that is vLLM's."""
    tensor_parallel_size: Positive = 1
    """Number of GPUs that one engine is split over."""


class Rollout(Section):
    """How answers are sampled."""

    prompts_per_step: Positive = 16
    """Prompts of one step."""
    samples_per_prompt: Positive = 2
    """Answers to each prompt (the group size of GRPO and RLOO)."""
    max_new_tokens: Positive = 64
    """Longest answer, in tokens."""
    temperature: Temperature = 1.0
    """Of the softmax that tokens are sampled from; log-probs are of that distribution too."""
    top_p: Fraction = 1.0
    """Share of nucleus sampling; must be 1."""
    rows_per_batch: Positive = 4
    """Answers that a rollout worker collects before it sends them on to be scored."""
    staleness: NonNegative = 0
    """How many updates old the weights that write a step's rows may be. Above 0, generation runs
    ahead while the learner is busy; see ppo.importance."""
    weight_transfer: Literal["shared_memory", "nccl", "ipc"] = "shared_memory"
    """How new weights reach the engines: through the machine's shared memory, with a checksum; from
    GPU to GPU; or within the one GPU that learner and engine share."""
    engine: Engine = Engine()
    """vLLM engine of each rollout worker."""

    @field_validator("top_p")
    @classmethod
    def _sampled_and_learned_law_are_one(cls, top_p: float) -> float:
        if top_p != 1.0:
            raise ValueError("must be 1: the learner's log-probs are over the whole vocabulary")
        return top_p


class Evaluation(Section):
    """Held-out prompts: how many, and every how many steps (0: only before and after).

    `greedy`: beside the sampled answer, the most likely one too.
    `kl`: also measure how far the policy is from the reference (`ppo.kl`), on the sampled answers,
    which the learner reads for it: the axis of over-optimisation curves.
    `canaries`: prompts whose right answer a pattern knows: rows with `prompt` and `matches`, a
    regular expression that is to be found in the answer. The most likely answer is taken.
    """

    every: NonNegative = 0
    """Steps between evaluations; 0: only before and after."""
    prompts: Positive = 48
    """Number of held-out prompts."""
    greedy: bool = False
    kl: bool = False
    canaries: Source | None = None

    @field_validator("canaries")
    @classmethod
    def _no_key_of_canaries_is_set_in_vain(cls, canaries: Source | None) -> Source | None:
        return of_prompts(canaries, "max_characters")


class Guard(Section):
    """What to do when the policy begins to fool its reward: on held-out prompts, `by` has got
    worse at each of `patience` evaluations in a row while the reward rose.

    `by`: the true reward (a held-out reward model may be it), the disagreement of the reward's
    members, or the share of right answers to `evaluation.canaries`. It counts as worse where the
    interval of its change, prompt by prompt, leaves 0 out.
    `action`: `warn`; `lower`, which divides the weight of the rewards by `factor` as it multiplies
    that of the KL penalty by it; `stop`; or `roll_back`, which stops with the best policy
    (`checkpoint.best_by`), be it the one at the start.
    """

    by: Literal["true_reward", "disagreement", "canary"] = "true_reward"
    patience: Positive = 2
    action: Literal["warn", "lower", "stop", "roll_back"] = "warn"
    factor: Annotated[float, Field(gt=1)] = 2.0


class PpoCheckpoint(Checkpoint):
    """`best_by`: the saved policy is the one with the highest such figure on held-out prompts
    (evaluation.every says when); null: the last one.
    """

    best_by: Literal["reward", "true_reward", "greedy_reward", "greedy_true_reward"] | None = None


class RolloutWorkers(Workers):
    """Workers that generate answers, one vLLM engine each."""

    threads: Positive = 2


class ScorerWorkers(Workers):
    """At least two, so that one may die."""

    count: Annotated[Count, Field(ge=2)] = 2
    cpus: Cpus = 0.25


class LearnerWorkers(Workers):
    """Training ranks of policy and critic."""

    threads: Positive = 2


class PpoWorkers(Section):
    """`share_devices`: a rollout worker and a learner rank take turns on one GPU: the engine sleeps
    during an update, and the optimizer's moments leave the GPU while answers are written.
    """

    rollout: RolloutWorkers = RolloutWorkers()
    """Workers that generate answers."""
    scorer: ScorerWorkers = ScorerWorkers()
    """Workers that score answers by the reward models and the true reward."""
    learner: LearnerWorkers = LearnerWorkers()
    """Training ranks of policy and critic."""
    share_devices: bool = False

    @model_validator(mode="after")
    def _two_share_one_gpu(self) -> PpoWorkers:
        if not self.share_devices:
            return self
        if not (self.rollout.gpus and self.learner.gpus):
            raise ValueError(
                "share_devices: rollout.gpus and learner.gpus must be above 0; CPUs are shared "
                "without this key"
            )
        if self.rollout.count != self.learner.count or self.rollout.gpus + self.learner.gpus > 1:
            raise ValueError(
                "share_devices: a rollout worker and a learner rank share each GPU: give both the "
                "same count, and gpus that add up to 1 at most"
            )
        return self


class PpoJob(Job):
    """PPO of a policy against reward models."""

    job: Literal["ppo"] = "ppo"
    policy: Model
    """The model that is trained."""
    value_head: Head = Head()
    """Head of the critic, on the hidden states of the policy."""
    reward: Reward
    """What the policy is rewarded for."""
    data: PromptData
    """Which prompts are answered."""
    rollout: Rollout = Rollout()
    """How answers are sampled."""
    ppo: Ppo = Ppo()
    """How the policy learns from them."""
    evaluation: Evaluation = Evaluation()
    """Evaluations on held-out prompts."""
    guard: Guard | None = None
    """Alarm against over-optimisation; null: none."""
    workers: PpoWorkers = PpoWorkers()
    """Workers of each role."""
    checkpoint: PpoCheckpoint = PpoCheckpoint()
    """Resumable state, and which policy is saved."""

    @model_validator(mode="after")
    def _a_policy_learns_and_a_critic_has_one_value(self) -> PpoJob:
        if self.policy.frozen:
            raise ValueError("policy.frozen: true would learn nothing")
        if self.value_head.attributes:
            raise ValueError("value_head.attributes: a critic has one value")
        if self.value_head.members > 1:
            raise ValueError("value_head.members: a critic has one value")
        return self

    @model_validator(mode="after")
    def _no_key_is_set_in_vain(self) -> PpoJob:
        ppo = self.ppo
        if ppo.estimator != "gae" and self.value_head != Head():
            raise ValueError(f"value_head: ppo.estimator {ppo.estimator} has no critic")
        weighed = ppo.importance or ("token" if self.rollout.staleness else "none")
        cap = type(ppo).model_fields["importance_cap"].default
        if weighed == "none" and ppo.importance_cap != cap:
            raise ValueError(
                "ppo.importance_cap: it has an effect only with rollout.staleness above 0 or with "
                "ppo.importance; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _gpus_meet(self) -> PpoJob:
        kind, workers = self.rollout.weight_transfer, self.workers
        each = workers.learner.gpus, workers.rollout.gpus
        if kind == "nccl" and not workers.share_devices and all(each) and min(each) < 1:
            raise ValueError(
                "rollout.weight_transfer: nccl needs whole GPUs, because it cannot connect two "
                "workers on the same GPU; give learner and rollout gpus of 1 or more, or use "
                "shared_memory"
            )
        if kind != "shared_memory" and not all(each):
            raise ValueError(
                f"rollout.weight_transfer: {kind} copies from GPU to GPU, so workers.learner.gpus "
                "and workers.rollout.gpus must be above 0; otherwise use shared_memory"
            )
        if kind == "ipc" and not (workers.share_devices and workers.learner.count == 1):
            raise ValueError(
                "rollout.weight_transfer: ipc works within one GPU: it needs "
                "workers.share_devices: true with one learner and one rollout worker"
            )
        if kind == "nccl" and workers.share_devices:
            raise ValueError(
                "rollout.weight_transfer: nccl cannot connect two workers on the same GPU, as "
                "with workers.share_devices: use ipc or shared_memory"
            )
        engine = self.rollout.engine
        if workers.share_devices and engine.tensor_parallel_size > 1:
            raise ValueError(
                "workers.share_devices: an engine on a part of a GPU cannot have more than one rank"
            )
        if workers.share_devices and engine.gpu_memory_utilization > workers.rollout.gpus:
            raise ValueError(
                "workers.share_devices: rollout.engine.gpu_memory_utilization must be at most "
                f"workers.rollout.gpus ({workers.rollout.gpus:g}), not "
                f"{engine.gpu_memory_utilization:g}"
            )
        if workers.share_devices and self.ppo.optimizer.offload != "none":
            raise ValueError(
                "workers.share_devices: it moves the optimizer to host memory and back; "
                "ppo.optimizer.offload keeps it there: set only one of them"
            )
        if workers.share_devices and self.rollout.staleness:
            raise ValueError(
                "workers.share_devices: engines sleep during an update, so rollout.staleness "
                "must be 0"
            )
        return self

    @model_validator(mode="after")
    def _older_weights_are_told_from_the_newest(self) -> PpoJob:
        if self.ppo.old_logprobs == "engine" and self.rollout.staleness:
            raise ValueError(
                "ppo.old_logprobs: engine needs rollout.staleness 0: importance weights compare "
                "the learner's log-probs with those of the older weights that wrote a row"
            )
        return self

    @model_validator(mode="after")
    def _a_prompt_has_answers_to_compare(self) -> PpoJob:
        if self.ppo.estimator not in ("gae", "reinforce_pp") and (
            self.rollout.samples_per_prompt < 2
        ):
            raise ValueError(
                f"rollout.samples_per_prompt: ppo.estimator {self.ppo.estimator} compares the "
                "answers to a prompt, so that it needs 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _an_answer_has_room_before_the_margin(self) -> PpoJob:
        overlong, longest = self.reward.overlong, self.rollout.max_new_tokens
        if overlong is not None and overlong.margin > longest:
            raise ValueError(
                f"reward.overlong.margin: {overlong.margin} tokens, but rollout.max_new_tokens is "
                f"{longest}"
            )
        return self

    @model_validator(mode="after")
    def _best_by_a_figure_that_there_is(self) -> PpoJob:
        best = self.checkpoint.best_by
        if best is None:
            return self
        if not self.evaluation.every:
            raise ValueError(
                "checkpoint.best_by: with evaluation.every: 0 there is nothing to choose the best "
                "policy by"
            )
        if best.startswith("greedy") and not self.evaluation.greedy:
            raise ValueError(f"checkpoint.best_by: {best} needs evaluation.greedy: true")
        if best.endswith("true_reward") and self.reward.true_reward is None:
            raise ValueError(f"checkpoint.best_by: {best} needs reward.true_reward")
        return self

    @model_validator(mode="after")
    def _a_guard_has_something_to_watch(self) -> PpoJob:
        guard = self.guard
        if guard is None:
            return self
        if not self.evaluation.every:
            raise ValueError("guard: with evaluation.every: 0 there is nothing to watch")
        if guard.by == "true_reward" and self.reward.true_reward is None:
            raise ValueError("guard.by: true_reward needs reward.true_reward")
        if guard.by == "canary" and self.evaluation.canaries is None:
            raise ValueError("guard.by: canary needs evaluation.canaries")
        if guard.by == "disagreement" and self.reward.aggregate.name == "conjunction":
            raise ValueError(
                "guard.by: members of a conjunction have no common scale, so that their "
                "disagreement cannot be measured"
            )
        if guard.patience * self.evaluation.every > self.ppo.steps:
            raise ValueError(
                f"guard.patience: {guard.patience} evaluations, {self.evaluation.every} steps "
                f"apart, do not fit into {self.ppo.steps} steps"
            )
        best = self.checkpoint.best_by or "none"
        if guard.action == "roll_back" and not best.endswith("true_reward"):
            raise ValueError(
                f"guard.action: roll_back needs checkpoint.best_by: true_reward, not {best}: by "
                "the reward, a policy that fools it looks best"
            )
        kl = self.ppo.kl
        if guard.action == "lower" and (kl.target is not None or not kl.coefficient):
            raise ValueError(
                "guard.action: lower multiplies ppo.kl.coefficient, which must be above 0 and "
                "without target"
            )
        if guard.action != "lower" and "factor" in guard.model_fields_set and guard.factor != 2.0:
            raise ValueError(f"guard.factor: action {guard.action} does not use it")
        return self

    @model_validator(mode="after")
    def _a_step_feeds_every_minibatch(self) -> PpoJob:
        rows = self.rollout.prompts_per_step * self.rollout.samples_per_prompt
        if rows < self.ppo.minibatches:
            raise ValueError(
                f"ppo.minibatches: {self.ppo.minibatches} need at least as many rows per step, "
                f"and rollout.prompts_per_step x samples_per_prompt is {rows}"
            )
        return self

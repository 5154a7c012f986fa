"""Best of n: sample, score, and see what choosing by a proxy does to the true reward.

The driver goes through the prompts shard by shard, a few at a time. Answers pass from the engines
to the scorers by reference; a shard that has all of its rows becomes one file and is forgotten, so
that neither a restart nor the driver's memory depends on how many shards there are.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import ray

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.errors import ConfigError
from grm_ray.config.registry import is_path
from grm_ray.data.files import digest
from grm_ray.data.records import Prompt
from grm_ray.drivers.best_of_n import shards
from grm_ray.drivers.best_of_n.figures import figures
from grm_ray.drivers.best_of_n.shards import TRUE_REWARD, LeftOut, Shard, column
from grm_ray.drivers.best_of_n.workers import Cast
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.checks.jobs import look_up
from grm_ray.drivers.checks.plan import bundles_of
from grm_ray.drivers.groups import fetch
from grm_ray.drivers.run_folder import check_identity, check_same_run, claim, open_run
from grm_ray.drivers.scored_batches import ScoredBatch, again
from grm_ray.models import backbone
from grm_ray.models.checkpoint import check_reward_model, model_identity
from grm_ray.reporting.best_of_n import RESULT, write_best_of_n
from grm_ray.reporting.document import put
from grm_ray.runtime import cluster, timeline
from grm_ray.runtime.placement import Bundle
from grm_ray.runtime.pool import Event, PoolFailed, Work
from grm_ray.runtime.tracking import Tracker
from grm_ray.workers.encoder import start_encoder

# What the shards of a run were made with; a resumption compares.
MADE_WITH = "made_with.json"


def run(config: BestOfNJob, resume: bool = False) -> Path:
    """Make all shards, then `best_of_n.json` and the page, whose path it returns.

    With `resume`, finished shards stay as they are.

    Raises:
        ConfigError: config, data or a model is wrong, or the shards are those of another run.
    """
    check(config)
    claim(config)
    look_up(config.policy)
    policy = backbone.resolve(config.policy.path)
    fingerprints = _fingerprints(config)
    identity = {
        "policy model": model_identity(policy),
        **{f"model of {name}": found for name, found in fingerprints.items()},
        "set of prompts": digest(config.data.prompts, {"prompt"}),
    }
    if resume:
        check_resumable(config, identity)
    wanted = bundles_of(config)
    with cluster.session(wanted):
        folder = open_run(config, resume)
        made_with = {"config": config.model_dump(mode="json"), "identity": identity}
        put(folder / MADE_WITH, json.dumps(made_with, indent=1) + "\n")
        left_out = LeftOut(folder / "quarantine.jsonl")
        _sample(config, folder, policy, fingerprints, wanted, left_out)
    result = figures(config, shards.finished(folder), left_out)
    put(folder / RESULT, json.dumps(result, indent=1) + "\n")
    return write_best_of_n(result, folder)


def _fingerprints(config: BestOfNJob) -> dict[str, str]:
    """Column of scores -> fingerprint of the reward model that they come from."""
    models = {column(name): path for name, path in config.proxies.items()}
    if is_path(config.true_reward):
        models[TRUE_REWARD] = config.true_reward
    return {name: check_reward_model(path)["fingerprint"] for name, path in models.items()}


def check_resumable(config: BestOfNJob, identity: dict[str, str]) -> None:
    """Refuse to add to shards that another config, or other models or data, made.

    Raises:
        ConfigError: naming what differs, or that there is nothing to go on from.
    """
    file = Path(config.runs).expanduser() / config.name / MADE_WITH
    if not file.is_file():
        raise ConfigError(f"--resume: {file.parent} contains no run; start it without --resume")
    saved = json.loads(file.read_text(encoding="utf-8"))
    check_identity((file.parent, saved), identity)
    check_same_run(saved["config"], config)


def _sample(
    config: BestOfNJob,
    folder: Path,
    policy: str,
    fingerprints: dict[str, str],
    wanted: list[Bundle],
    left_out: LeftOut,
) -> None:
    """Make the shards that lack; workers start only where there is one."""
    there = {int(file.stem.split("-")[1]) for file in shards.finished(folder)}
    if there:
        print(f"{len(there)} shards are already finished", flush=True)
    todo = (
        (number, prompts)
        for number, prompts in shards.numbered(config, left_out)
        if number not in there
    )
    first = next(todo, None)
    if first is None:
        return
    with cluster.placement_group(wanted) as placed:
        print("starting workers (vLLM takes about a minute)", flush=True)
        cast = Cast(config, folder, policy, placed, wanted, list(fingerprints.values()))
        tracker = Tracker(folder, {"run": config.name, "job": "bon"}, list(config.tracking))
        try:
            cast.wait()
            _Sampling(config, folder, cast, policy, tracker, len(there)).run(first, todo)
        finally:
            tracker.close()
            cast.close()
            timeline.merge(folder)


class _Sampling:
    """The shards under way.

    An engine holds two, so that it is busy while the longest answers of one are still being
    written; two more may wait for their scores.

    Args:
        written: shards that are there already.
    """

    def __init__(
        self,
        config: BestOfNJob,
        folder: Path,
        cast: Cast,
        policy: str,
        tracker: Tracker,
        written: int,
    ) -> None:
        self._config, self._folder, self._cast = config, folder, cast
        self._tracker, self._written = tracker, written
        self._since = time.perf_counter()
        self._most = 2 * config.workers.rollout.count + 2
        self._under_way: list[Shard] = []
        self._prompts: dict[int, list[Prompt]] = {}  # of the shards under way, by number
        self._heard = cast.transport.now()
        log = str(folder / "logs" / "encoder.log")
        self._encoder = start_encoder(policy, config.policy.trust_remote_code, log)

    def run(
        self, first: tuple[int, list[Prompt]], todo: Iterator[tuple[int, list[Prompt]]]
    ) -> None:
        """Until all are written.

        Raises:
            PoolFailed: workers die faster than they serve, or none answers in time.
        """
        following: tuple[int, list[Prompt]] | None = first
        while following is not None or self._under_way:
            while following is not None and len(self._under_way) < self._most:
                self._begin(*following)
                following = next(todo, None)
            self._finish()
            if self._under_way:
                self._wait()

    def _begin(self, number: int, prompts: list[Prompt]) -> None:
        config = self._config
        table, info = self._encoder.prompts.remote(prompts, config.data.max_prompt_length)
        found, samples = fetch(info), config.rollout.samples_per_prompt
        ids, left_out = found["prompt_ids"], found["left_out"]
        shard = Shard(number, table, ids, left_out, samples, config.seed)
        self._prompts[number] = prompts
        self._under_way.append(shard)
        self._generate(shard)

    def _again(self, shard: Shard) -> None:
        """Rows of the shard went with a machine: it is made anew, and what still comes of the old
        one is not looked at."""
        print(
            f"shard {shard.number}: some of its rows were lost with a machine; it is computed "
            "again",
            flush=True,
        )
        self._under_way.remove(shard)
        self._begin(shard.number, self._prompts[shard.number])

    def _generate(self, shard: Shard) -> None:
        """Ask one engine for what the shard lacks."""
        wanted = shard.wanted()
        if wanted:
            self._cast.rollouts.submit(
                Work(
                    lambda worker: worker.generate.options(num_returns="streaming").remote(
                        shard.prompts, wanted
                    ),
                    shard,
                )
            )

    def _wait(self) -> None:
        """Until a worker says something, or for a second; the pools look after the silent.

        Raises:
            PoolFailed: nobody could be started for too long.
        """
        rollouts, scorers = self._cast.rollouts, self._cast.scorers
        transport, timeout = self._cast.transport, self._config.timeout_s
        ready = transport.wait([*rollouts.waitables(), *scorers.waitables()], 1.0)
        if ready or rollouts.busy or scorers.busy:
            self._heard = transport.now()
        elif transport.now() - self._heard > timeout:
            raise PoolFailed(f"no worker could be started for {timeout} s")
        for ref in ready:
            of_rollouts = rollouts.owns(ref)
            for event in (rollouts if of_rollouts else scorers).handle(ref):
                (self._on_generated if of_rollouts else self._on_scored)(event)
        for event in rollouts.look_after():
            self._on_generated(event)
        for event in scorers.look_after():
            self._on_scored(event)

    def _on_generated(self, event: Event) -> None:
        shard: Shard = event.work.payload
        if shard not in self._under_way:
            return
        if event.kind == "gone":  # its prompts
            self._again(shard)
        elif event.kind in ("lost", "end"):  # at the end a batch may have been passed over
            self._generate(shard)
        elif event.kind == "item":
            batch, metadata = event.value
            if shard.generated(batch, metadata["uids"]):
                ScoredBatch(shard, batch, len(metadata["uids"])).submit(self._cast.scorers)

    def _on_scored(self, event: Event) -> None:
        shard: Shard = event.work.payload.owner
        if shard not in self._under_way:
            return
        if event.kind == "gone":
            self._again(shard)
        elif event.kind == "lost":
            again(event, self._cast.scorers)
        else:
            shard.scored(shards.by_proxy(event.value, list(self._config.proxies)))

    def _finish(self) -> None:
        """Write the shards that have all of their rows."""
        for shard in [shard for shard in self._under_way if shard.complete]:
            try:
                batches = ray.get(shard.batches)
            except ray.exceptions.ObjectLostError:
                self._again(shard)
                continue
            shard.write(self._folder, batches)
            self._under_way.remove(shard)
            del self._prompts[shard.number]
            self._tell(shard)

    def _tell(self, shard: Shard) -> None:
        """A line for whoever looks on, and figures, by the number of shards, for the dashboard."""
        before, self._since = self._since, time.perf_counter()
        self._written += 1
        self._tracker.log(
            {
                "step": self._written,
                "rows_per_second": shard.answers / max(1e-9, self._since - before),
                **self._cast.rollouts.figures(),
                **self._cast.scorers.figures(),
            }
        )
        at = time.strftime("%H:%M:%S")
        print(f"{at}  shard {shard.number}: {shard.answers} answers", flush=True)

"""A rollout worker: vLLM's AsyncLLM in an actor, streaming finished rows as Arrow batches."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import traceback
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from grm_ray.config.ppo import Engine, Rollout
from grm_ray.config.schema import Model
from grm_ray.data.tables import ROLLOUTS, flat
from grm_ray.models.backbone import resolve_dtype
from grm_ray.runtime import logs, scratch, weight_engine
from grm_ray.runtime.timeline import Timeline, traced
from grm_ray.runtime.weights import (
    ChecksumError,
    Version,
    WeightUpdate,
    laid_here,
    remove_stale,
)


@ray.remote
class RolloutWorker:
    """Serves after `start`, where the policy is trained once `update_weights` brought its weights.

    Args:
        policy: the config's section, as plain data.
        rollout: likewise.
        max_prompt_length: tokens.
        share_devices: leave the GPU to a learner between `sleep` and `wake_up`.
        model_path: the folder that `policy.path` stands for.
    """

    def __init__(
        self,
        policy: dict[str, Any],
        rollout: dict[str, Any],
        max_prompt_length: int,
        share_devices: bool,
        model_path: str,
        threads: int,
        log: str,
    ) -> None:
        logs.to_file(Path(log))
        self.timeline = Timeline(Path(log))
        scratch.enter()
        self._policy, self._rollout = Model(**policy), Rollout(**rollout)
        self._length = max_prompt_length + self._rollout.max_new_tokens
        self._share_devices = share_devices
        self._path = model_path
        self._version = Version(0, 0)
        self._writing, self._stopped = 0, False  # shares that are being written; for an update
        engine = self._rollout.engine
        os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(max(1, round(engine.kv_cache_gb)))
        # "nobind": pinning would put several workers' threads on the same first cores.
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
        os.environ["OMP_NUM_THREADS"] = str(threads)
        if not torch.cuda.is_available():
            _lean_engine(engine)
        os.environ["VLLM_NO_USAGE_STATS"] = "1"
        if self._rollout.weight_transfer == "ipc":
            # Handles to device memory, on their way to this engine's own processes.
            os.environ["VLLM_ALLOW_INSECURE_SERIALIZATION"] = "1"

    @traced
    async def start(self) -> str:
        """Bring the engine up with the weights of the policy's folder; returns their version."""
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.v1.engine.async_llm import AsyncLLM

        engine = self._rollout.engine
        remove_stale()
        weight_engine.register()
        self._engine = AsyncLLM.from_engine_args(
            AsyncEngineArgs(
                model=self._path,
                load_format="safetensors",  # never a pickle, which can run code
                dtype=resolve_dtype(self._policy.dtype),
                max_model_len=self._length,
                max_num_seqs=engine.max_num_seqs,
                enforce_eager=engine.enforce_eager,
                tensor_parallel_size=engine.tensor_parallel_size,
                gpu_memory_utilization=engine.gpu_memory_utilization,
                # Log-probs of the law that was sampled from, temperature included.
                logprobs_mode="processed_logprobs",
                enable_prefix_caching=True,
                weight_transfer_config={"backend": self._rollout.weight_transfer},
                enable_sleep_mode=self._share_devices,
                trust_remote_code=self._policy.trust_remote_code,
                disable_log_stats=True,
                **({} if torch.cuda.is_available() else _on_cpu(self._length)),
            )
        )
        return str(self._version)

    @traced
    async def update_weights(self, update: WeightUpdate, blob: Any = None) -> str:
        """Load one version through vLLM's weight-transfer interface; returns that version.

        Args:
            update: the version's table of contents.
            blob: the file's bytes, for a worker on another machine than the learner.
        """
        from vllm.distributed.weight_transfer.base import WeightTransferUpdateRequest

        if not update.is_here and blob is None:
            raise ChecksumError(f"weights {update.version} are on {update.host} only")
        here = contextlib.nullcontext(update) if update.is_here else laid_here(blob, update)
        with here as local, _engine_must_live():
            await self._begin_update()
            await self._engine.update_weights(
                WeightTransferUpdateRequest(update_info={"update": local.as_dict()})
            )
            await self._end_update(update.version)
        return str(self._version)

    @traced
    async def transfer(self, step: str, payload: Any) -> None:
        """One step of vLLM's transfer protocol, called by the learner (`runtime.gpu_transfer`).

        Args:
            step: "init", "start", "update", or "finish", whose payload is the version.
        """
        from vllm.distributed.weight_transfer.base import (
            WeightTransferInitRequest,
            WeightTransferUpdateRequest,
        )

        with _engine_must_live():
            if step == "init":
                await self._engine.init_weight_transfer_engine(WeightTransferInitRequest(payload))
            elif step == "start":
                await self._begin_update()
            elif step == "update":
                await self._engine.update_weights(WeightTransferUpdateRequest(update_info=payload))
            else:
                await self._end_update(payload)

    async def _begin_update(self) -> None:
        """Rows that nobody waits for any more may still be being written, since to be told to stop
        takes no time and to stop does: they end here."""
        self._stopped = self._writing > 0
        if self._stopped:
            await self._engine.pause_generation(mode="abort", clear_cache=False)
        await self._engine.start_weight_update()

    async def _end_update(self, version: Version) -> None:
        await self._engine.finish_weight_update(weight_version=str(version))
        if self._stopped:
            await self._engine.resume_generation()
        self._version = version

    @traced
    async def sleep(self) -> None:
        """Leave the GPU to the learner: weights go to the host's memory, keys are forgotten."""
        with _engine_must_live():
            await self._engine.sleep(level=1)

    @traced
    async def wake_up(self) -> None:
        """Take the GPU again after `sleep`."""
        with _engine_must_live():
            await self._engine.wake_up()

    @traced
    async def generate(
        self, prompts: pa.Table, rows: list[tuple[int, str, int]], greedy: bool = False
    ) -> AsyncIterator[Any]:
        """Sample answers; streams pairs of a `ROLLOUTS` batch and its metadata.

        Args:
            prompts: the run's `PROMPTS` table.
            rows: (row of `prompts`, uid, sampling seed) of each answer wanted.
            greedy: the most likely token each time, instead of a sampled one.
        """
        tokens, offsets = flat(prompts, "prompt_tokens")
        samples: dict[int, list[tuple[str, int]]] = {}
        for row, uid, seed in rows:
            samples.setdefault(row, []).append((uid, seed))
        done: asyncio.Queue[list[dict[str, Any]]] = asyncio.Queue()
        self._writing += 1
        tasks = [
            asyncio.create_task(
                self._prompt(
                    wanted,
                    tokens[offsets[row] : offsets[row + 1]],
                    {name: prompts.column(name)[row].as_py() for name in ("prompt", "messages")},
                    0.0 if greedy else self._rollout.temperature,
                    done,
                )
            )
            for row, wanted in samples.items()
        ]
        try:
            left = len(rows)
            while left:
                batch = await self._next(done, tasks)
                while len(batch) < min(self._rollout.rows_per_batch, left):
                    batch = batch + await self._next(done, tasks)
                left -= len(batch)
                table = pa.Table.from_pylist(batch, schema=ROLLOUTS)
                yield table
                yield {
                    "uids": [row["uid"] for row in batch],
                    "lengths": [len(row["response_tokens"]) for row in batch],
                    "tokens": [
                        len(row["prompt_tokens"]) + len(row["response_tokens"]) for row in batch
                    ],
                    "finished": [row["finished"] for row in batch],
                    "versions": [(row["incarnation"], row["version"]) for row in batch],
                }
        finally:
            self._writing -= 1
            for task in tasks:
                task.cancel()

    async def _next(self, done: asyncio.Queue, tasks: list[asyncio.Task]) -> list[dict[str, Any]]:
        """The next finished prompt's rows; a failed request raises here."""
        while True:
            try:
                return done.get_nowait()
            except asyncio.QueueEmpty:
                for task in tasks:
                    if task.done() and task.exception() is not None:
                        raise task.exception() from None
                try:
                    return await asyncio.wait_for(done.get(), timeout=1.0)
                except TimeoutError:
                    continue

    async def _prompt(
        self,
        wanted: list[tuple[str, int]],
        prompt_tokens: np.ndarray,
        texts: dict[str, str],
        temperature: float,
        done: asyncio.Queue,
    ) -> None:
        """All answers to one prompt; they leave together, so that those who read them share it."""
        rows = await asyncio.gather(
            *(self._one(uid, seed, prompt_tokens, texts, temperature) for uid, seed in wanted)
        )
        await done.put(rows)

    async def _one(
        self,
        uid: str,
        seed: int,
        prompt_tokens: np.ndarray,
        texts: dict[str, str],
        temperature: float,
    ) -> dict[str, Any]:
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        version = self._version
        parameters = SamplingParams(
            temperature=temperature,
            max_tokens=self._rollout.max_new_tokens,
            seed=seed,
            logprobs=0,  # the sampled token's own
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        stream = self._engine.generate(
            # Answers to one prompt share its keys; the salt keeps those of old weights apart.
            {"prompt_token_ids": prompt_tokens.tolist(), "cache_salt": str(version)},
            parameters,
            request_id=f"{uid}/{seed}",
        )
        with _engine_must_live():
            async for output in stream:
                answer = output.outputs[0]
                if output.finished:
                    ids = list(answer.token_ids)
                    return {
                        "uid": uid,
                        **texts,
                        "response": answer.text,
                        "prompt_tokens": prompt_tokens.tolist(),
                        "response_tokens": ids,
                        "engine_logprobs": [
                            step[token].logprob
                            for step, token in zip(answer.logprobs, ids, strict=True)
                        ],
                        "finished": answer.finish_reason == "stop",
                        "incarnation": version.incarnation,
                        "version": version.step,
                    }
        raise RuntimeError(f"the engine returned no answer to {uid}")


def _lean_engine(engine: Engine) -> None:
    """What a CPU engine does without. Measured with the embedded model on two cores."""
    if engine.tensor_parallel_size == 1:
        # No worker process beside the engine's core: it starts 15 s sooner, and a decoding step of
        # 32 rows takes 0.23 s instead of 0.33 s.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if engine.enforce_eager:
        # vLLM compiles parts of its sampler all the same, for 20 s at the first request.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


def _on_cpu(length: int) -> dict[str, Any]:
    """Engine options for CPUs.

    No prompt may be prefilled in pieces: after a piece vLLM winds the row's own generator back, and
    a CPU generator cannot be ("CPU Generator does not use offset"): with seeds, such a step ends
    the engine. Blocks of keys are as small as the kernel takes them, since only full ones are
    shared.
    """
    return {
        "enable_chunked_prefill": False,
        "max_num_batched_tokens": max(2048, length),
        "block_size": 32,
    }


@contextlib.contextmanager
def _engine_must_live() -> Iterator[None]:
    """An actor whose engine died is of no use: it dies too, and the pool replaces both."""
    from vllm.v1.engine.exceptions import EngineDeadError

    try:
        yield
    except EngineDeadError:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)

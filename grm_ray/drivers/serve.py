"""Reward models behind HTTP: a pool of scorers, a token, and a server that ends when asked to."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import PairSource
from grm_ray.config.serve import ServeJob
from grm_ray.data import sources
from grm_ray.data.records import as_messages, as_turns
from grm_ray.data.sources import Quarantine
from grm_ray.data.tables import ASKED
from grm_ray.drivers import reward_stages
from grm_ray.drivers.checks.check import check
from grm_ray.drivers.checks.plan import bundles_of
from grm_ray.drivers.run_folder import claim, open_run
from grm_ray.drivers.scoring import stop_scorers
from grm_ray.models.checkpoint import check_reward_model, local_folder
from grm_ray.reporting.run import job_of
from grm_ray.rewards.aggregate import MemberNormalizer
from grm_ray.runtime import cluster
from grm_ray.runtime.http_service import app
from grm_ray.runtime.pool import Pool, must_show
from grm_ray.runtime.service import ScoringService, score_once
from grm_ray.runtime.service_metrics import Measured
from grm_ray.workers.scorer import Scorer

TOKEN_FILE = "token"
TOKEN_VARIABLE = "GRM_RAY_SERVE_TOKEN"
_LOCAL = {"127.0.0.1", "::1", "localhost"}


def run(config: ServeJob, resume: bool = False) -> None:
    """Serve until SIGTERM or Ctrl-C; requests under way are answered first.

    A service that is started again has the token that it had: `resume` changes nothing.

    Raises:
        ConfigError: the config or a model is wrong, or the address is taken; no worker was started.
        RuntimeError: the scorers died faster than they could be replaced.
    """
    check(config)
    claim(config)
    was_here = _was_here(config)
    fingerprints = [check_reward_model(path)["fingerprint"] for path in config.models.values()]
    wanted = bundles_of(config)
    # Listened on from the start, or a second service could take the address while scorers load;
    # whoever connects meanwhile waits for the answer.
    with contextlib.closing(_bound(config)) as address, cluster.session(wanted):
        folder = open_run(config, resume or was_here)
        token = _token(folder)
        with cluster.placement_group(wanted) as placed:
            pool = _pool(config, folder, placed, wanted, fingerprints)
            pool.wait_ready(config.timeout_s)
            aggregate = _aggregate(config, pool)
            limits = config.limits
            service = ScoringService(
                pool,
                config.rows_per_batch,
                limits.waiting_rows,
                limits.waiting_bytes,
                config.timeout_s,
            )
            service.start()
            try:
                names = list(config.models)
                served = app(
                    service, aggregate, names, " ".join(fingerprints), token, config.limits
                )
                measured = Measured(served, service, lambda: pool.replaced, config.name)
                with contextlib.closing(measured):
                    _serve(config, address, measured, service, folder)
            finally:
                service.stop()
                stop_scorers(pool)


def _was_here(config: ServeJob) -> bool:
    """Whether this service was started before.

    Raises:
        ConfigError: the folder is that of another job.
    """
    folder = Path(config.runs).expanduser() / config.name
    if not (folder / "config.yaml").is_file():
        return False
    job = job_of(folder)
    if job is None:  # damaged: a token is a service's alone
        if (folder / TOKEN_FILE).is_file():
            return True
        raise ConfigError(
            f"name: {folder}/config.yaml does not say whose folder this is; choose another name"
        )
    if job != config.job:
        raise ConfigError(f"name: {folder} is the folder of a run ({job}); choose another name")
    return True


def _pool(
    config: ServeJob, folder: Path, placed: Any, wanted: list, fingerprints: list[str]
) -> Pool:
    workers = config.workers

    def spawn(slot: int) -> tuple[Any, Any]:
        options = cluster.worker_options(placed, wanted, wanted[slot], workers.threads)
        worker = Scorer.options(**options).remote(
            [str(local_folder(path).resolve()) for path in config.models.values()],
            config.dtype,
            None,
            None,
            config.tokens_per_micro_batch,
            workers.threads,
            str(folder / "logs" / f"scorer-{slot}.log"),
            config.trust_remote_code,
        )
        return worker, worker.start.remote()

    return Pool(
        "scorer",
        spawn,
        workers.count,
        admit=must_show(fingerprints),
        say=lambda message: print(message, flush=True),
        dead_s=config.timeout_s,
    )


def _aggregate(config: ServeJob, pool: Pool) -> Callable[[np.ndarray], np.ndarray]:
    """All models' scores to one."""
    if config.reference is None:
        return lambda scores_BK: scores_BK[:, 0]
    join = reward_stages.aggregate("aggregate", config.aggregate)
    asked = reference_rows(config.reference, config.seed)
    scores_BK = score_once(pool, asked, config.timeout_s)
    scores_BK = scores_BK[np.isfinite(scores_BK).all(axis=1)]
    try:
        scale = MemberNormalizer.fit(torch.from_numpy(scores_BK.T.copy()))
    except ValueError as error:
        raise ConfigError(f"reference: {config.reference.path}: {error}") from None

    def joined(scores_BK: np.ndarray) -> np.ndarray:
        return join(scale.normalize(torch.from_numpy(scores_BK.T.copy()))).numpy()

    return joined


def reference_rows(source: PairSource, seed: int) -> pa.Table:
    """`ASKED`: every answer of the pairs to its prompt."""
    rows = []
    for contest in sources.contests(source, Quarantine(), seed):
        for answer in (*contest.chosen, *contest.rejected):
            turns = as_turns(answer)
            said = as_messages((*contest.prompt, *turns[:-1]))
            rows.append({"messages": json.dumps(said), "prompt": None, "response": turns[-1][1]})
    if len(rows) < 2:
        raise ConfigError(
            f"reference: {source.path}: needs two or more answers to measure the models on"
        )
    return pa.Table.from_pylist(rows, ASKED)


def _token(folder: Path) -> str:
    """What requests must bring: from the environment, or made and kept in the run's folder.

    Raises:
        ConfigError: it is too short to keep anybody out.
    """
    path = folder / TOKEN_FILE
    where, token = TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE)
    if token is None:
        if not path.exists():
            fresh = path.with_name(f"{TOKEN_FILE}.new")
            fresh.unlink(missing_ok=True)
            with open(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_urlsafe(32) + "\n")
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
        where, token = str(path), path.read_text(encoding="utf-8")
    token = token.strip()
    if len(token) < 16 or not token.isascii():
        raise ConfigError(
            f"{where}: a token must have at least 16 ASCII characters; remove it, and a new "
            "one is made"
        )
    return token


def _serve(
    config: ServeJob, address: socket.socket, served: Any, service: ScoringService, folder: Path
) -> None:
    limits = config.limits
    server = _Server(
        uvicorn.Config(
            served,
            host=config.host,
            port=config.port,
            http=_patient(limits.seconds_to_send),
            ws="none",
            lifespan="off",
            log_level="critical",
            access_log=False,
            server_header=False,
            proxy_headers=False,  # or whoever asks could name any address as his
            limit_concurrency=limits.connections,
            timeout_keep_alive=max(1, round(limits.seconds_to_send)),
            timeout_graceful_shutdown=30,
        )
    )
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        asyncio.run(_until_over(server, address, service, config, folder))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    if isinstance(service.failed, Exception):
        raise RuntimeError(f"no scorer is left: {service.failed}")


class _Server(uvicorn.Server):
    """Ends in peace: uvicorn's own would raise the signal once more when it is done."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        yield

    def _end(self) -> None:
        if cluster.ends_with_us():  # and so do the scorers: nobody could be answered any more
            cluster.abandon()
            os._exit(0)
        self.should_exit = True


async def _until_over(
    server: uvicorn.Server,
    address: socket.socket,
    service: ScoringService,
    config: ServeJob,
    folder: Path,
) -> None:
    port = address.getsockname()[1]
    task = asyncio.create_task(server.serve(sockets=[address]))
    while not server.started and not task.done():
        await asyncio.sleep(0.05)
    if task.done():
        try:
            return await task
        except OSError as error:
            raise _no_address(config, error) from None
    where = TOKEN_VARIABLE if TOKEN_VARIABLE in os.environ else os.path.relpath(folder / TOKEN_FILE)
    host = f"[{config.host}]" if ":" in config.host else config.host
    print(f"serving on http://{host}:{port}, token in {where}", flush=True)
    if config.host not in _LOCAL:
        print(
            f"warning: {config.host} can be reached from other machines, over plain HTTP: put a "
            "TLS proxy in front of it",
            flush=True,
        )
    while not task.done():
        if service.failed is not None:
            server.should_exit = True
        await asyncio.wait([task], timeout=0.5)
    await task


def _bound(config: ServeJob) -> socket.socket:
    """A socket that listens on the address: nobody else can have it from now on.

    Raises:
        ConfigError: it is taken, or not of this machine.
    """
    kind = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    found = socket.socket(kind)
    found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        found.bind((config.host, config.port))
        found.listen()  # bound alone, `SO_REUSEADDR` would let others bind it too
    except OSError as error:
        found.close()
        raise _no_address(config, error) from None
    return found


def _no_address(config: ServeJob, error: OSError) -> ConfigError:
    return ConfigError(f"host, port: {config.host}:{config.port}: {error.strerror or error}")


def _patient(seconds: float) -> type[H11Protocol]:
    """Connections on which nothing is being answered are closed after `seconds`: uvicorn waits for
    ever for the head of a request, for a body that nobody reads and for an answer to be taken, and
    a few such clients would take all connections."""

    class Patient(H11Protocol):
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._watch()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._watch()  # from now on the next request is waited for

        def _watch(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self.loop.call_later(seconds, self._look)

        def _look(self) -> None:
            at_work = self.cycle is not None and not self.cycle.response_complete
            if at_work and not self.flow.write_paused:
                self._watch()
            else:
                self.transport.abort()

    return Patient

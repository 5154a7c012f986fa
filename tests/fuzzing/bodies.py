"""Damaged requests to the service, through its application; a real reward model scores the rest."""

from __future__ import annotations

import asyncio
import json
import random
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from grm_ray.config.serve import Limits
from grm_ray.models.reward_reader import RewardReader, RewardReaders
from grm_ray.runtime.http_service import app
from grm_ray.runtime.service import RequestRefused
from tests.fuzzing import values
from tests.fuzzing.harness import Kind, clear, require
from tests.fuzzing.material import lay_out

TOKEN = "right"
TALK = [{"role": "user", "content": "the cat"}, {"role": "assistant", "content": "on a mat"}]
GOOD: dict[str, list[Any]] = {
    "/score": [
        {"rows": [{"messages": TALK[:1], "response": "sat"}, {"prompt": "the", "response": "cat"}]},
        {"rows": [{"prompt": "", "response": "rain"}]},
    ],
    "/get_reward": [
        {"query": ["the cat sat", "red birds"], "prompts": ["the cat", "green"]},
        {"query": ["rain fell"]},
    ],
    "/classify": [{"model": "x", "input": ["hills", "rain"]}, {"messages": TALK}, {"input": "a"}],
}


class Here:
    """What `ScoringService` does for the application, with the scorer's reader in this process."""

    failed = None

    def __init__(self, folder: Path) -> None:
        self._readers = RewardReaders([RewardReader(str(folder), "float32", None, 2048)])

    def is_alive(self) -> bool:
        return True

    def ask(self, rows: pa.Table) -> Future:
        future: Future = Future()
        try:  # what `workers.scorer.Scorer.answer` takes for a fault of the rows
            found = self._readers.member_scores(rows)
            future.set_result(np.stack([members.mean(axis=1) for members in found], axis=1))
        except (ValueError, TypeError, KeyError, IndexError) as error:
            future.set_exception(RequestRefused(type(error).__name__))
        return future


class Bodies(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        lay_out(folder)
        limits = Limits(rows=64, bytes=200_000, requests_per_second=1e9)
        service = Here(folder / "runs" / "rm_demo" / "model")
        mean = lambda scores_BK: scores_BK.mean(axis=1)  # noqa: E731
        self._app = app(service, mean, ["grm"], "f", TOKEN, limits)  # type: ignore[arg-type]

    def attempt(self, rng: random.Random) -> str:
        path = rng.choice(sorted(GOOD))
        body = self._body(rng, path)
        headers = [(b"authorization", b"Bearer right"), (b"content-type", b"application/json")]
        if rng.random() < 0.15:
            headers = self._headers(rng)
        method = rng.choice(["GET", "PUT", "OPTIONS", "x"]) if rng.random() < 0.03 else "POST"
        if rng.random() < 0.03:
            path = rng.choice(
                ["/", "/score/", "/score\0", "/../score", "//score", "/é", "", "/health"]
            )
        status, said = asyncio.run(self._ask(rng, method, path, headers, body))
        require(200 <= status < 500, f"{status} {said[:500]!r} to {body[:300]!r}")
        if status >= 400 and said.startswith(b"{"):
            clear(json.loads(said)["error"])
        if status == 200 and path in GOOD:
            json.loads(
                said, parse_constant=lambda name: require(False, f"{name} in {said[:200]!r}")
            )
        return "accepted" if status == 200 else "refused"

    def _body(self, rng: random.Random, path: str) -> bytes:
        tree = json.loads(json.dumps(rng.choice(GOOD[path])))
        kind = rng.randrange(6)
        if kind == 0:
            return values.damaged(rng, json.dumps(tree).encode())
        if kind == 1:
            return values.written(values.odd(rng)).encode()
        for _ in range(rng.choice([0, 1, 1, 3])):
            values.change(rng, tree)
        if rng.random() < 0.5:
            return values.written(tree).encode()
        try:
            return json.dumps(tree, ensure_ascii=False).encode("utf-8", "surrogatepass")
        except ValueError:  # an integer of thousands of digits
            return b"[" * 2000

    def _headers(self, rng: random.Random) -> list[tuple[bytes, bytes]]:
        odd = [
            b"",
            b"\xb2",
            b"-1",
            b"1e9",
            b"9" * 5000,
            b"0x10",
            b" 3",
            b"\xff\x00",
            b"300000",
            b"3, 3",
        ]
        token = [
            b"",
            b"Bearer",
            b"Bearer \xff",
            b"bearer right",
            b"Bearer wrong",
            b"Basic cmlnaHQ=",
        ]
        made = [(b"authorization", b"Bearer right"), (b"content-length", rng.choice(odd))]
        if rng.random() < 0.3:
            made[0] = (b"authorization", rng.choice(token))
        return [*made, (b"content-type", rng.choice([b"\xff", b"", b"text/plain; charset=\xff"]))]

    async def _ask(
        self, rng: random.Random, method: str, path: str, headers: list[Any], body: bytes
    ) -> tuple[int, bytes]:
        """Status and body of the answer to one request, which comes in one to three parts."""
        cuts = sorted(rng.randrange(len(body) + 1) for _ in range(rng.randrange(3)))
        parts = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True)]
        left = [
            {"type": "http.request", "body": part, "more_body": i + 1 < len(parts)}
            for i, part in enumerate(parts)
        ]
        if rng.random() < 0.02:
            left = left[:-1]  # whoever asks hangs up in the middle
        answered: list[Any] = []

        async def receive() -> Any:
            return left.pop(0) if left else {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answered.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": rng.choice([b"", b"a=%ff&%00"]),
            "headers": headers,
            "client": rng.choice([("127.0.0.1", 5), None]),
            "server": ("127.0.0.1", 8700),
        }
        await self._app(scope, receive, send)
        said = b"".join(m.get("body", b"") for m in answered[1:])
        return answered[0]["status"], said

"""The HTTP side of a scoring service: who may ask, how much, and in which forms.

Forms of request and answer: our own (`/score`), OpenRLHF's remote reward (`/get_reward`), and
vLLM's `/classify`. Whatever is wrong with a request is said in one JSON message; nothing that a
request says reaches a log.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from grm_ray.config.serve import Limits
from grm_ray.data.tables import ASKED
from grm_ray.runtime.service import Busy, RequestRefused, ScoringService

# Scores (B, K) of all models -> (B,).
Aggregate = Callable[[np.ndarray], np.ndarray]
_ADDRESSES = 4096  # remembered for their rates
_QUICK = 65_536  # bytes that are read at once; what is larger does not hold up others
_PATIENCE_S = 1.0  # between looks whether whoever asked is still there
_OUR_ROLES = Literal["system", "user", "assistant", "tool", "developer"]


class Wrong(Exception):
    """A request that is answered with `status` and one message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


class _Form(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)


class _Message(_Form):
    role: _OUR_ROLES
    content: str


class _Row(_Form):
    """An answer to a conversation, or plain text (`prompt` and `response`) in the model's own
    template."""

    messages: Annotated[list[_Message], Field(min_length=1, fail_fast=True)] | None = None
    prompt: str | None = None
    response: str

    @model_validator(mode="after")
    def _one_of_two(self) -> _Row:
        if (self.messages is None) == (self.prompt is None):
            raise ValueError("give either messages (a conversation) or prompt (plain text)")
        return self


class _Score(_Form):
    rows: Annotated[list[_Row], Field(fail_fast=True)]


class _GetReward(_Form):
    """OpenRLHF's `--reward.remote_url`: texts as the policy read and wrote them."""

    query: Annotated[list[str], Field(fail_fast=True)]
    prompts: Annotated[list[str], Field(fail_fast=True)] | None = None


class _Classify(_Form):
    """vLLM's `/classify`."""

    model: str | None = None
    input: str | Annotated[list[str], Field(fail_fast=True)] | None = None
    messages: Annotated[list[_Message], Field(min_length=2, fail_fast=True)] | None = None

    @model_validator(mode="after")
    def _one_of_two(self) -> _Classify:
        if (self.messages is None) == (self.input is None):
            raise ValueError("give either input (texts) or messages (a conversation)")
        return self


def app(
    service: ScoringService,
    aggregate: Aggregate,
    names: Sequence[str],
    fingerprint: str,
    token: str,
    limits: Limits,
) -> Starlette:
    """The ASGI application.

    Args:
        names: of the models, in the order of their scores.
        token: what `Authorization: Bearer` must bring.
    """
    gate = _Gate(token, limits)

    def posted(
        form: type[_Form], answer: Callable[[Any, Request], Awaitable[dict[str, Any]]]
    ) -> Any:
        async def endpoint(request: Request) -> JSONResponse:
            try:
                gate.check(request)
                return JSONResponse(await answer(await _read(request, form, limits), request))
            except Wrong as wrong:
                return JSONResponse({"error": wrong.message}, wrong.status, wrong.headers)
            except ClientDisconnect:
                return JSONResponse({"error": "gone"}, 400)

        return endpoint

    async def scores(rows: list[tuple[str | None, str | None, str]], asked: Request) -> np.ndarray:
        return await _scores(service, rows, limits, asked)

    async def score(form: _Score, asked: Request) -> dict[str, Any]:
        found_BK = await scores([_plain(row) for row in form.rows], asked)
        answer: dict[str, Any] = {
            "scores": aggregate(found_BK).tolist(),
            "fingerprint": fingerprint,
        }
        if len(names) > 1:
            answer["members"] = dict(zip(names, found_BK.T.tolist(), strict=True))
        return answer

    async def get_reward(form: _GetReward, asked: Request) -> dict[str, Any]:
        prompts = [""] * len(form.query) if form.prompts is None else form.prompts
        if len(prompts) != len(form.query):
            raise Wrong(400, f"prompts: {len(prompts)} prompts for {len(form.query)} queries")
        # A query whose prompt was cut on its way does not begin with it: it is scored as a whole.
        parted = [
            (p, q[len(p) :]) if q.startswith(p) else ("", q)
            for q, p in zip(form.query, prompts, strict=True)
        ]
        found = aggregate(await scores([(None, p, r) for p, r in parted], asked)).tolist()
        return {"rewards": found, "scores": found, "extra_logs": {}}

    async def classify(form: _Classify, asked: Request) -> dict[str, Any]:
        if form.messages is not None:
            *before, last = form.messages
            if last.role != "assistant":
                raise Wrong(400, "messages: the last one must be the assistant's, which is scored")
            rows = [_plain(_Row(messages=before, response=last.content))]
        else:
            texts = [form.input] if isinstance(form.input, str) else form.input or []
            rows = [(None, "", text) for text in texts]
        found = aggregate(await scores(rows, asked)).tolist()
        return {
            "id": f"classify-{time.time_ns():x}",
            "object": "list",
            "created": int(time.time()),
            "model": names[0],
            "data": [
                {"index": i, "label": "LABEL_0", "probs": [value], "num_classes": 1}
                for i, value in enumerate(found)
            ],
            "usage": {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0},
        }

    async def health(_: Request) -> JSONResponse:
        well = service.failed is None and service.is_alive()
        return JSONResponse({"status": "ok" if well else "over"}, 200 if well else 503)

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/score", posted(_Score, score), methods=["POST"]),
            Route("/get_reward", posted(_GetReward, get_reward), methods=["POST"]),
            Route("/classify", posted(_Classify, classify), methods=["POST"]),
        ],
        exception_handlers={HTTPException: _no_such_thing},
    )


async def _no_such_thing(_: Request, error: Exception) -> JSONResponse:
    """No such path, or not by this method: said as all else is that is refused."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


class _Gate:
    """Lets in who has the token, each address as often as it may."""

    def __init__(self, token: str, limits: Limits) -> None:
        self._token = token.encode()
        # Who has no token cannot use up what those have who share its address.
        self._served = _Buckets(limits.requests_per_second)
        self._refused = _Buckets(limits.requests_per_second)

    def check(self, request: Request) -> None:
        """
        Raises:
            Wrong: 401 without the token, 429 too often.
        """
        address = request.client.host if request.client else ""
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("utf-8", "replace"), self._token)
        right = right and kind.lower() == "bearer"
        if not (self._served if right else self._refused).take(address):
            raise Wrong(429, "too many requests", {"Retry-After": "1"})
        if not right:
            raise Wrong(401, "no valid token", {"WWW-Authenticate": "Bearer"})


class _Buckets:
    """Of each address one that fills again at `rate` a second and holds as much as one second."""

    def __init__(self, rate: float) -> None:
        self._rate, self._most = rate, max(1.0, rate)
        self._of: OrderedDict[str, tuple[float, float]] = OrderedDict()

    def take(self, address: str) -> bool:
        now = time.monotonic()
        left, then = self._of.pop(address, (self._most, now))
        left = min(self._most, left + (now - then) * self._rate)
        self._of[address] = (left - 1 if left >= 1 else left, now)
        if len(self._of) > _ADDRESSES:
            self._of.popitem(last=False)
        return left >= 1


async def _read(request: Request, form: type[_Form], limits: Limits) -> _Form:
    """The request's body as `form`.

    Raises:
        Wrong: 400, 408 or 413.
    """
    declared = request.headers.get("content-length", "")
    # `isdigit` alone takes `²` too, and `int` refuses what has thousands of digits.
    plain = declared.isascii() and declared.isdigit()
    if plain and (len(declared) > 18 or int(declared) > limits.bytes):
        raise Wrong(413, f"more than {limits.bytes} bytes")
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds_to_send):
            async for part in request.stream():
                body += part
                if len(body) > limits.bytes:
                    raise Wrong(413, f"more than {limits.bytes} bytes")
    except TimeoutError:
        raise Wrong(
            408,
            f"the body did not arrive within {limits.seconds_to_send:g} s",
            {"Connection": "close"},
        ) from None
    if len(body) < _QUICK:
        return _parsed(body, form)
    return await asyncio.to_thread(_parsed, body, form)


def _parsed(body: bytearray, form: type[_Form]) -> _Form:
    """
    Raises:
        Wrong: 400.
    """
    try:
        given = json.loads(body)
    except (ValueError, RecursionError):
        raise Wrong(400, "the body is not valid JSON") from None
    try:
        return form.model_validate(given)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise Wrong(400, f"{where}: {said}" if where else said) from None


def _plain(row: _Row) -> tuple[str | None, str | None, str]:
    if row.messages is None:
        return None, row.prompt, row.response
    return json.dumps([message.model_dump() for message in row.messages]), None, row.response


async def _scores(
    service: ScoringService,
    rows: list[tuple[str | None, str | None, str]],
    limits: Limits,
    asked: Request,
) -> np.ndarray:
    """`(B, K)`.

    Raises:
        Wrong: 400 where a row cannot be scored, 413 for too many, 503 where there is no room.
    """
    if not rows:
        raise Wrong(400, "there is no row to score")
    if len(rows) > limits.rows:
        raise Wrong(413, f"{len(rows)} rows; a request may have at most {limits.rows}")
    columns = [list(column) for column in zip(*rows, strict=True)]
    try:
        table = pa.table(columns, schema=ASKED)
    except (pa.ArrowException, UnicodeError):
        raise Wrong(400, "a text is not valid Unicode") from None
    try:
        future = asyncio.wrap_future(service.ask(table))
        while not (await asyncio.wait([future], timeout=_PATIENCE_S))[0]:
            if await asked.is_disconnected():
                future.cancel()
                raise Wrong(400, "gone")
        found_BK = future.result()
    except Busy as busy:
        raise Wrong(503, str(busy), {"Retry-After": "1"}) from None
    except RequestRefused as refused:
        raise Wrong(400, f"these rows cannot be scored ({refused})") from None
    bad = np.flatnonzero(~np.isfinite(found_BK).all(axis=1))
    if len(bad):
        raise Wrong(
            400, f"row {bad[0]}: it has no text, or the reward model's chat template refuses it"
        )
    return found_BK

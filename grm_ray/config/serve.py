"""The schema of `grm_ray.serve`: reward models behind HTTP."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from grm_ray.config.judging import JudgeWorkers
from grm_ray.config.rewards import Named
from grm_ray.config.schema import Dtype, Job, Name, PairSource, PathText, Positive, Rate, Section


class Limits(Section):
    """What one may ask for; who asks for more is told so, and nobody else suffers.

    `rows` and `bytes`: of one request. `waiting_rows` and `waiting_bytes`: of all requests under
    way; beyond it 503.
    `connections`: open at a time; beyond it 503. `requests_per_second`: of one address, as many at
    once; beyond it 429. `seconds_to_send`: for the head of a request, and for its body; 408.
    """

    rows: Positive = 512
    bytes: Positive = 4_194_304
    waiting_rows: Positive = 8192
    waiting_bytes: Positive = 268_435_456
    connections: Positive = 1024
    requests_per_second: Rate = 2000.0
    seconds_to_send: Rate = 10.0

    @model_validator(mode="after")
    def _one_request_may_wait(self) -> Limits:
        if self.waiting_rows < self.rows or self.waiting_bytes < self.bytes:
            raise ValueError(
                "waiting_rows and waiting_bytes: must be at least rows and bytes, the limits of "
                "one request"
            )
        return self


class ServeJob(Job):
    """Saved reward models as a service.

    `models`: name -> folder or hub id; several are one reward, joined by `aggregate`, each brought
    to mean 0 and deviation 1 on the answers of `reference` (preference pairs) before the service
    begins.
    `host`: 127.0.0.1 is this machine alone. The service speaks plain HTTP: on any other address
    put a proxy with TLS before it.
    `rows_per_batch`: how many waiting rows, whoever sent them, a scorer gets at once; the scorer
    packs them by `tokens_per_micro_batch`.
    """

    job: Literal["serve"] = "serve"
    models: Annotated[dict[Name, PathText], Field(min_length=1)]
    aggregate: Named = Named(name="mean")
    reference: PairSource | None = None
    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, lt=65536)] = 8700
    """TCP port; 0: any free one."""
    limits: Limits = Limits()
    """What one client may ask for."""
    rows_per_batch: Positive = 64
    dtype: Dtype = "auto"
    """Number format of weights and activations; auto: bfloat16 where the hardware supports it."""
    tokens_per_micro_batch: Positive = 2048
    trust_remote_code: bool = False
    """Whether code that comes with a hub model may run here."""
    workers: JudgeWorkers = JudgeWorkers()
    """Workers that score answers."""

    @model_validator(mode="after")
    def _several_have_a_scale(self) -> ServeJob:
        if (len(self.models) > 1) != (self.reference is not None):
            raise ValueError(
                "reference: needed with two or more models (preference pairs that bring their "
                "scores to one scale), and not allowed with one"
            )
        if len(self.models) == 1 and (self.aggregate.name != "mean" or self.aggregate.parameters):
            raise ValueError("aggregate: a single model needs no aggregate; give several models")
        return self

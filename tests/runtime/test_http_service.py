"""What a request declares of itself is not believed."""

import asyncio

import pytest
from starlette.requests import Request

from grm_ray.config.serve import Limits
from grm_ray.runtime.http_service import Wrong, _read, _Score


def read(length: bytes, body: bytes = b'{"rows": [{"prompt": "", "response": "a"}]}'):
    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "headers": [(b"content-length", length)]}
    return asyncio.run(_read(Request(scope, receive), _Score, Limits(bytes=1000)))


@pytest.mark.parametrize("length", [b"", b"\xb2", b"\xb3\xb9", b"-1", b"many", b"43", b"1e9"])
def test_a_length_that_is_no_number_is_passed_over(length):
    assert read(length).rows[0].response == "a"


@pytest.mark.parametrize("length", [b"1001", b"9" * 19, b"9" * 5000])
def test_a_declared_length_over_the_limit_is_refused_before_the_body_comes(length):
    with pytest.raises(Wrong) as refused:
        read(length)
    assert refused.value.status == 413

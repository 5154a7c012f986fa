"""A service's address is its own from the start, and what is wrong with it is told in one line."""

import asyncio
import contextlib
import socket

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.serve import ServeJob
from grm_ray.drivers import serve


class Failing:
    """A server that cannot listen."""

    started = False

    async def serve(self, sockets):
        raise OSError(98, "Address already in use")


def test_an_address_is_taken_before_the_scorers_are_there():
    config = ServeJob(name="one", models={"a": "none"}, port=0)
    with contextlib.closing(serve._bound(config)) as first:
        port = first.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^host, port: 127.0.0.1:{port}: Address already"):
            serve._bound(config.model_copy(update={"port": port}))
    # A service that was ended begins again at once.
    serve._bound(config.model_copy(update={"port": port})).close()


def test_an_address_that_cannot_be_served_on_ends_in_one_line(tmp_path):
    config = ServeJob(name="one", models={"a": "none"}, port=18998)
    with socket.socket() as address, pytest.raises(ConfigError, match="^host, port: 127.0.0.1:189"):
        asyncio.run(serve._until_over(Failing(), address, None, config, tmp_path))

"""`python -m grm_ray.serve --config F`: saved reward models as an HTTP service.

It runs until it is interrupted. Every request needs the token that is in the run's folder.
"""

from __future__ import annotations

from grm_ray import command
from grm_ray.config.serve import ServeJob


def run(config: ServeJob, resume: bool) -> None:
    """Do the job, until a signal ends it."""
    from grm_ray.drivers import serve
    from grm_ray.runtime.logs import quiet_driver

    quiet_driver()
    serve.run(config, resume)


if __name__ == "__main__":
    command.main(ServeJob, run, "Serve saved reward models over HTTP.")

"""The command line that every job shares: config, overrides, --resume, --dry-run, exit codes."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel

from grm_ray.config.document import legible
from grm_ray.config.errors import ConfigError, RunStopped
from grm_ray.config.load import load
from grm_ray.config.reference import reference
from grm_ray.runtime.parent import end_with_it

J = TypeVar("J", bound=BaseModel)


def main(schema: type[J], run: Callable[[J, bool], Path | None], description: str) -> NoReturn:
    """Parse the arguments, run the job, leave with its exit code.

    0: done. 2: config or data is wrong (one message, no traceback). 1: anything else.
    """
    arguments = _parser(schema, description).parse_args()
    code, config = 1, None
    try:
        config = load(schema, arguments.config, arguments.overrides)
        if arguments.dry_run:
            _dry_run(config, arguments.cluster)
        else:
            if arguments.cluster:
                raise ConfigError("--cluster FILE can only be used with --dry-run")
            signal.signal(signal.SIGTERM, _interrupt(config))
            end_with_it()
            report = run(config, arguments.resume)
            if report is not None:
                print(f"report: {os.path.relpath(report)}")
        code = 0
    except ConfigError as error:
        print(f"error: {legible(str(error))}", file=sys.stderr)
        code = 2
    except RunStopped as error:
        print(f"error: {error}; {_how_to_go_on(config)}", file=sys.stderr)
    except KeyboardInterrupt:
        _say_interrupted(config)
    except Exception as error:  # noqa: BLE001 - the last place that can say what happened
        traceback.print_exc()
        print(f"error: {type(error).__name__}: {str(error)[-2000:]}", file=sys.stderr)
    sys.stdout.flush()
    sys.exit(code)


def _how_to_go_on(config: Any) -> str:
    from grm_ray.runtime.snapshot import Snapshots

    if config is not None:
        if config.job in ("study", "curate", "overoptimization"):
            return "start it again: it continues where it stopped"
        run = Path(config.runs).expanduser() / config.name
        # What an evaluation has scored is kept set by set, what `bon` has sampled shard by shard.
        kept = {"evaluate": "scores/*/*.parquet", "bon": "samples/*.parquet"}.get(config.job)
        if (kept and any(run.glob(kept))) or Snapshots(run / "checkpoints", 1).all():
            return "continue with --resume"
    return "there is no checkpoint to continue from"


class _Keys(argparse.Action):
    """Print every key of the job, and leave: as --help does."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        print(reference(self.const), end="")
        parser.exit()


def _parser(schema: type[BaseModel], description: str) -> argparse.ArgumentParser:
    started = getattr(sys.modules["__main__"], "__spec__", None)
    program = f"python -m {started.name}" if started else None
    parser = argparse.ArgumentParser(prog=program, description=description)
    parser.add_argument(
        "--keys",
        action=_Keys,
        nargs=0,
        const=schema,
        help="every key of the config, and its default",
    )
    parser.add_argument("--config", required=True, help="a YAML file, see configs/")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint")
    parser.add_argument(
        "--dry-run", action="store_true", help="check everything, print the plan, start nothing"
    )
    parser.add_argument(
        "--cluster", metavar="FILE", help="with --dry-run: check against this declared cluster"
    )
    parser.add_argument("overrides", nargs="*", metavar="key.path=value")
    return parser


def _dry_run(config: Any, cluster: str | None) -> None:
    from grm_ray.drivers.checks.check import check
    from grm_ray.drivers.checks.readable import rehearse
    from grm_ray.drivers.footprint.text import described
    from grm_ray.runtime.placement import declared, this_machine

    nodes = declared(Path(cluster)) if cluster else [this_machine()]
    plan = check(config, nodes, elsewhere=cluster is not None)
    if cluster is None:
        rehearse(config)
    print(f"{config.job} job '{config.name}': the config is valid")
    print(plan)
    if said := described(config, plan.placed, here=cluster is None):
        print(said)


def _interrupt(config: Any) -> Callable[..., NoReturn]:
    """What SIGTERM does: the same as Ctrl-C, unless Ray itself ends of it."""

    def interrupt(*_: Any) -> NoReturn:
        from grm_ray.runtime import cluster

        if cluster.ends_with_us():
            # Files are whole or marked so at any moment, as for a kill: nothing has to be closed.
            cluster.abandon()
            _say_interrupted(config)
            os._exit(1)
        raise KeyboardInterrupt

    return interrupt


def _say_interrupted(config: Any) -> None:
    print(f"\ninterrupted; {_how_to_go_on(config)}", file=sys.stderr, flush=True)

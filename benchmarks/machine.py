"""What a figure was measured on, and where it is written."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def machine() -> str:
    """Processor, cores and vector width of this machine in one line."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    name = next(
        (line.split(":", 1)[1].strip() for line in info.splitlines() if line.startswith("model n")),
        platform.processor(),
    )
    flags = next((line for line in info.splitlines() if line.startswith("flags")), "").split()
    widest = next((f for f in ("avx512f", "avx2", "avx") if f in flags), "no AVX")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return f"{name}, {len(os.sched_getaffinity(0))} cores, {widest}, {memory:.0f} GiB, no GPU"


def finish(result: dict[str, Any]) -> None:
    """Print `result` as the last line, and keep it under `results/`."""
    result = {**result, "machine": machine()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{result['name']}.json"
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


def call(command: list[str]) -> str:
    """What `command` prints; when it fails, this program ends with what it said."""
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    if done.returncode:
        sys.exit(f"{command[0]} failed:\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout

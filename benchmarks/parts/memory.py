"""The memory that a process holds, as Linux tells it."""

from __future__ import annotations

from pathlib import Path


def rollup(pid: int) -> dict[str, int]:
    """Bytes of a process: `anonymous`, and `pss`, which counts files' pages too."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("utf-8").splitlines()
    sizes = {line.split(":")[0]: int(line.split()[1]) << 10 for line in lines[1:]}
    return {"anonymous": sizes["Pss_Anon"], "pss": sizes["Pss"]}


def mapped_weights(pid: int) -> int:
    """Bytes of model files in memory: a process's share, where several have one mapped."""
    found, of_weights = 0, False
    for line in Path(f"/proc/{pid}/smaps").read_text("utf-8").splitlines():
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):  # a mapping begins
            of_weights = line.endswith(".safetensors")
        elif of_weights and first == "Pss:":
            found += int(line.split()[1]) << 10
    return found

"""Known vulnerabilities of what is installed: `.venv/bin/python tools/audit.py`, for `make lint`.

Asks `pip-audit`, which asks the package index's database. Where that cannot be reached, or answers
that it knows none of the packages (as a plain package mirror does), pip-audit itself would end well
with nothing looked at: this says that the audit was not done. Exit codes: 0 nothing found, or not
done; 1 found. Arguments are handed on to pip-audit.
"""

from __future__ import annotations

import json
import subprocess
import sys

LIMIT_S = 600
NOT_DONE = "audit: NOT DONE, so nothing is known of vulnerable dependencies: "


def main(arguments: list[str]) -> int:
    command = [sys.executable, "-m", "pip_audit", "--format", "json", "--progress-spinner", "off"]
    try:
        done = subprocess.run(
            [*command, *arguments], capture_output=True, text=True, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        print(f"{NOT_DONE}no answer in {LIMIT_S} s")
        return 0
    code, said = verdict(done.stdout, done.stderr)
    print(said)
    return code


def verdict(report: str, errors: str) -> tuple[int, str]:
    """Exit code and message, of pip-audit's JSON and of what it wrote beside it."""
    try:
        packages = json.loads(report)["dependencies"]
    except (ValueError, KeyError, TypeError):
        last = (errors.strip().splitlines() or ["pip-audit said nothing"])[-1]
        return 0, NOT_DONE + last[:300]
    known = [package for package in packages if "vulns" in package]
    unknown = sorted(package["name"] for package in packages if "vulns" not in package)
    if not known:
        return 0, f"{NOT_DONE}the database knows none of {len(packages)} packages"
    lines = [
        f"  {package['name']} {package['version']}: {found['id']}"
        f" (mended in {', '.join(found['fix_versions']) or 'no version yet'})"
        for package in known
        for found in package["vulns"]
    ]
    said = f"audit: {len(known)} packages looked at, {len(lines)} vulnerabilities"
    if unknown:
        said += f"; not known to the database: {', '.join(unknown)}"
    return (1 if lines else 0), "\n".join([said, *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

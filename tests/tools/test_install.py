"""What `make install` decides; that it works is seen whenever the tests run in a fresh clone."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.insert(0, str(TOOLS))

import install  # noqa: E402
from uv_options import uv_options  # noqa: E402


def pairs(options: list[str]) -> list[tuple[str, str]]:
    return list(zip(options[::2], options[1::2], strict=True))


def test_uv_looks_where_pip_looks() -> None:
    listing = (
        "global.index-url='https://one.example/simple'\n"
        "global.extra-index-url='https://two.example/simple\\nfile:///three'\n"
        "global.find-links='/wheels'\n"
    )
    options, _ = uv_options(listing)
    assert ("--default-index", "https://one.example/simple") in pairs(options)
    assert ("--index", "https://two.example/simple") in pairs(options)
    assert ("--index", "file:///three") in pairs(options)
    assert ("--find-links", "/wheels") in pairs(options)


def test_pip_variables_win_over_its_files() -> None:
    options, variables = uv_options(
        ":env:.find-links='/new'\nglobal.find-links='/old'\nglobal.cert='/certificates.pem'"
    )
    assert ("--find-links", "/new") in pairs(options)
    assert "/old" not in options
    assert variables == {"SSL_CERT_FILE": "/certificates.pem"}


@pytest.mark.parametrize("value, expected", [("true", True), ("1", True), ("false", False)])
def test_no_index_is_a_switch(value: str, expected: bool) -> None:
    options, _ = uv_options(f"global.no-index='{value}'")
    assert ("--no-index" in options) is expected


@pytest.mark.parametrize(
    "extras, part", [("cpu,gpu", "choose one"), ("cpu,cuda", "no extra cuda"), ("cpu", "clean-env")]
)
def test_a_request_that_cannot_work_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], extras: str, part: str
) -> None:
    (tmp_path / "lib/python3.11/site-packages/vllm-0.33.0.dist-info").mkdir(parents=True)
    assert install.main(["--venv", str(tmp_path), "--extras", extras]) == 2
    assert part in capsys.readouterr().err


def test_what_is_left_out_belongs_to_a_requirement_of_ours() -> None:
    extras = install.project_table()["optional-dependencies"]
    pinned = {need.split("==")[0] for extra in extras.values() for need in extra}
    assert set(install.LEFT_OUT) <= pinned

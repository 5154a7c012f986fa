"""What `make lint` says of vulnerable dependencies, and above all: when it knows nothing."""

from __future__ import annotations

import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tools"))

import audit  # noqa: E402

CLEAN = {"name": "one", "version": "1.0", "vulns": []}
UNKNOWN = {"name": "grm-ray", "skip_reason": "Dependency not found on PyPI"}
BAD = {
    "name": "two",
    "version": "2.0",
    "vulns": [{"id": "PYSEC-1", "fix_versions": ["2.1"]}, {"id": "PYSEC-2", "fix_versions": []}],
}


def verdict(*packages: dict) -> tuple[int, str]:
    return audit.verdict(json.dumps({"dependencies": packages, "fixes": []}), "")


def test_what_is_found_fails_with_the_version_that_mends_it() -> None:
    code, said = verdict(CLEAN, BAD, UNKNOWN)
    assert code == 1
    assert said.splitlines() == [
        "audit: 2 packages looked at, 2 vulnerabilities; not known to the database: grm-ray",
        "  two 2.0: PYSEC-1 (mended in 2.1)",
        "  two 2.0: PYSEC-2 (mended in no version yet)",
    ]


def test_nothing_found_passes_and_says_how_much_was_looked_at() -> None:
    assert verdict(CLEAN) == (0, "audit: 1 packages looked at, 0 vulnerabilities")


@pytest.mark.parametrize("report", ["", "{}", "[]", "no connection"])
def test_no_report_is_no_clean_one(report: str) -> None:
    code, said = audit.verdict(report, "first\nERROR: no route to host\n")
    assert (code, said) == (0, f"{audit.NOT_DONE}ERROR: no route to host")


def test_a_database_that_knows_no_package_is_no_clean_report() -> None:
    code, said = verdict(UNKNOWN, UNKNOWN)
    assert code == 0 and said == f"{audit.NOT_DONE}the database knows none of 2 packages"


class Database(BaseHTTPRequestHandler):
    """Has one report about one package, in the form of osv.dev."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name = asked["package"]["name"]
        report = {
            "id": "GHSA-made-up",
            "summary": "made up",
            "affected": [
                {
                    "package": {"name": name, "ecosystem": "PyPI"},
                    "ranges": [{"type": "ECOSYSTEM", "events": [{"fixed": "9.9"}]}],
                }
            ],
        }
        body = json.dumps({"vulns": [report]} if name == "bad" else {}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def test_pip_audit_itself_against_a_database_here(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    pytest.importorskip("pip_audit")
    asked = tmp_path / "requirements.txt"
    server = HTTPServer(("127.0.0.1", 0), Database)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    where = f"http://127.0.0.1:{server.server_port}"
    options = ["--no-deps", "--disable-pip", "-r", str(asked), "-s", "osv", "--osv-url", where]
    try:
        asked.write_text("good==1.0\nbad==1.0\n")
        assert audit.main(options) == 1
        assert "bad 1.0: GHSA-made-up (mended in 9.9)" in capsys.readouterr().out
        asked.write_text("good==1.0\n")
        assert audit.main(options) == 0
        assert "1 packages looked at, 0 vulnerabilities" in capsys.readouterr().out
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert audit.main(options) == 0  # nobody there any more
    assert audit.NOT_DONE in capsys.readouterr().out

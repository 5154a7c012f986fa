"""A rule that a service decides: what it answers, and what becomes of nonsense."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from grm_ray.runtime.http_rule import http


class Service(BaseHTTPRequestHandler):
    answer: ClassVar[dict] = {}
    seen: ClassVar[list] = []

    def do_POST(self):
        self.seen.append(self.headers["Authorization"])
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/moved":
            self.send_response(302)
            self.send_header("Location", "/reward")
            self.end_headers()
            return
        made = self.answer or {"rewards": [len(text) for text in asked["responses"]]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(made).encode())

    def do_GET(self):
        self.seen.append(self.headers["Authorization"])
        self.send_error(404)

    def log_message(self, *_):
        pass


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr("grm_ray.runtime.http_rule.PAUSE_S", 0.01)


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Service, "answer", {})
    monkeypatch.setattr(Service, "seen", [])
    server = HTTPServer(("127.0.0.1", 0), Service)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/reward"
    server.shutdown()
    thread.join()
    server.server_close()


def test_one_number_an_answer(url):
    assert http(["a", "bcd"], ["?", "?"], url) == [1.0, 3.0]


@pytest.mark.parametrize("answer", [{"rewards": [1.0]}, {"scores": [1, 2]}, {"rewards": ["x", 1]}])
def test_anything_else_ends_the_rule_with_its_address(url, monkeypatch, answer):
    monkeypatch.setattr(Service, "answer", answer)
    with pytest.raises(RuntimeError, match=url):
        http(["a", "b"], ["?", "?"], url)


def test_nobody_there():
    with pytest.raises(RuntimeError, match="rule http: http://127.0.0.1:9"):
        http(["a"], ["?"], "http://127.0.0.1:9", timeout_s=2)
    with pytest.raises(ValueError, match="not an http or https address"):
        http([], [], "file:///etc/passwd")


def test_a_token_goes_along_from_its_file_and_stands_in_no_message(url, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("hunter2-hunter2\n")
    assert http(["a"], ["?"], url, token_file=str(file)) == [1.0]
    assert http(["a"], ["?"], url) == [1.0]
    assert Service.seen == ["Bearer hunter2-hunter2", None]
    monkeypatch.setattr(Service, "answer", {"rewards": []})
    with pytest.raises(RuntimeError) as error:
        http(["a"], ["?"], url, token_file=str(file))
    assert "hunter2" not in str(error.value)


def test_a_token_is_not_taken_to_where_a_redirection_leads(url, tmp_path, monkeypatch):
    file = tmp_path / "token"
    file.write_text("hunter2-hunter2")
    with pytest.raises(RuntimeError, match="404"):
        http(["a"], ["?"], url.replace("/reward", "/moved"), token_file=str(file))
    assert Service.seen == ["Bearer hunter2-hunter2", None] * 4


@pytest.mark.parametrize("held", ["", "a b", "a\nhunter2", "h\u00fcnter2"])
def test_a_file_without_a_token_is_refused_before_anything_is_asked(tmp_path, held):
    file = tmp_path / "token"
    file.write_text(held)
    with pytest.raises(ValueError, match="one line of printable ASCII") as error:
        http([], [], "http://127.0.0.1:9", token_file=str(file))
    assert "hunter2" not in str(error.value)
    with pytest.raises(ValueError, match="No such file"):
        http([], [], "http://127.0.0.1:9", token_file=str(file) + "s")


@pytest.mark.parametrize(
    "address", ["http://bob:hunter2@127.0.0.1:9/", "http://127.0.0.1:9/?api_key=hunter2"]
)
def test_an_address_with_a_password_is_refused_and_not_repeated(address):
    with pytest.raises(ValueError, match="token_file") as error:
        http([], [], address)
    assert "hunter2" not in str(error.value)

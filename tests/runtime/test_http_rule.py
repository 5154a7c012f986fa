"""A rule that a service decides: what it answers, and what becomes of nonsense."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import ClassVar

import pytest

from grm_ray.runtime.http_rule import http


class Service(BaseHTTPRequestHandler):
    answer: ClassVar[dict] = {}

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        made = self.answer or {"rewards": [len(text) for text in asked["responses"]]}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(made).encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def url(monkeypatch):
    monkeypatch.setattr(Service, "answer", {})
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
    with pytest.raises(ValueError, match="no http or https address"):
        http([], [], "file:///etc/passwd")

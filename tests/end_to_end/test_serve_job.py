"""`python -m grm_ray.serve` on the real stack: who is let in, in which forms, and what it bears."""

import concurrent.futures
import contextlib
import importlib.util
import json
import os
import re
import signal
import socket
import time
import urllib.error
import urllib.request

import numpy as np
import psutil
import pytest
import yaml

from grm_ray import serve
from grm_ray.models.backbone import load_tokenizer
from grm_ray.models.checkpoint import load_reward_model
from grm_ray.models.scoring import score_rows
from tests.conftest import ROOT, descendants, job
from tests.end_to_end.conftest import refused
from tests.end_to_end.exporter import asked_for, scrape
from tests.end_to_end.test_ppo_job import wait_for

CHAT = [{"role": "user", "content": "the cat sat"}]
TEXTS = ["on a mat", "and saw red birds", "fly over green hills while rain fell"]
LIMITS = {
    "bytes": 100_000,
    "rows": 64,
    "connections": 300,
    "seconds_to_send": 3.0,
    "requests_per_second": 2000,
}


@pytest.fixture(scope="module")
def served(tmp_path_factory, reward_model):
    """(process, address, token, folder) of a service of the tiny reward model."""
    folder = tmp_path_factory.mktemp("serve")
    config = {
        "name": "serve",
        "runs": str(folder / "runs"),
        "models": {"grm": str(reward_model[0] / "model")},
        "port": 0,
        "dtype": "float32",
        "limits": LIMITS,
    }
    path = folder / "serve.yaml"
    path.write_text(yaml.safe_dump(config))
    log = (folder / "log").open("w+")
    process = job("grm_ray.serve", "--config", str(path), cwd=folder, stdout=log)
    wait_for(lambda: "serving on" in (folder / "log").read_text(), process)
    address = re.search(r"serving on (\S+),", (folder / "log").read_text()).group(1)
    token = (folder / "runs" / "serve" / "token").read_text().strip()
    yield process, address, token, folder
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def ask(served, path, body, token=None, headers=None, timeout=60):
    """(status, answer) of a POST."""
    _, address, own, _ = served
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"Authorization": f"Bearer {own if token is None else token}"} | (headers or {})
    request = urllib.request.Request(f"{address}{path}", raw, given)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.fixture(scope="module")
def expected(reward_model):
    """The scores of `TEXTS` after `CHAT`, computed here; and the template's text around them."""
    folder = str(reward_model[0] / "model")
    model, contract, _ = load_reward_model(folder, "float32")
    tokenizer = load_tokenizer(folder)
    prompt, answers = contract.tokens(tokenizer, CHAT, TEXTS)
    scores = score_rows(model, [(np.array(prompt), np.array(a)) for a in answers], 512)
    text = tokenizer.apply_chat_template(CHAT, tokenize=False, add_generation_prompt=True)
    return scores, text, tokenizer.eos_token


def rows(texts=TEXTS):
    return {"rows": [{"messages": CHAT, "response": text} for text in texts]}


@pytest.mark.timeout(600)
def test_every_form_gives_the_model_s_own_scores(served, expected):
    scores, prompt, end = expected
    status, found = ask(served, "/score", rows())
    assert status == 200 and found["scores"] == pytest.approx(scores, abs=1e-5)
    assert len(found["fingerprint"]) > 8
    plain = {"rows": [{"prompt": prompt, "response": text} for text in TEXTS]}
    assert ask(served, "/score", plain)[1]["scores"] == pytest.approx(scores, abs=1e-5)
    for closed in ("", end, end + end):
        queries = [prompt + text + closed for text in TEXTS]
        body = {"query": queries, "prompts": [prompt] * 3, "labels": ["x"] * 3}
        status, found = ask(served, "/get_reward", body)
        assert found["rewards"] == found["scores"] == pytest.approx(scores, abs=1e-5)
        assert found["extra_logs"] == {}
    # A prompt that was cut on its way, an answer that ends at once, a line's end after the end.
    body = {"query": [prompt + TEXTS[0]], "prompts": ["something longer " + prompt]}
    assert ask(served, "/get_reward", body)[1]["rewards"] == pytest.approx(scores[:1], abs=1e-5)
    body = {"query": [prompt + end], "prompts": [prompt]}
    assert ask(served, "/get_reward", body)[0] == 200
    row = {"prompt": prompt, "response": TEXTS[0] + end + "\n"}
    found = ask(served, "/score", {"rows": [row]})[1]
    assert found["scores"] == pytest.approx(scores[:1], abs=1e-5)
    status, found = ask(served, "/classify", {"model": "any", "input": prompt + TEXTS[0] + end})
    (row,) = found["data"]
    assert row["probs"] == pytest.approx(scores[:1], abs=1e-5) and row["num_classes"] == 1
    chat = [*CHAT, {"role": "assistant", "content": TEXTS[1]}]
    status, found = ask(served, "/classify", {"messages": chat})
    assert found["data"][0]["probs"] == pytest.approx(scores[1:2], abs=1e-5)


@pytest.mark.timeout(600)
def test_its_figures_are_on_ray_s_prometheus_endpoint(served):
    assert ask(served, "/score", rows())[0] == 200
    assert ask(served, "/score", rows(), token="wrong-wrong-wrong")[0] == 401
    wanted = {name for name in asked_for() if name.startswith("ray_grm_ray_serve_")}
    assert len(wanted) == 5

    def answered(found):
        every = found.get("ray_grm_ray_serve_requests_total", [])
        return {(one["path"], one["status"]) for one in every}

    found, until = {}, time.monotonic() + 90
    while ("/score", "401") not in answered(found) and time.monotonic() < until:
        time.sleep(2)
        found = scrape(served[0])
    assert wanted <= found.keys(), sorted(found)
    assert {("/score", "200"), ("/score", "401")} <= answered(found)
    assert {(one["run"], one["job"]) for name in wanted for one in found[name]} == {
        ("serve", "serve")
    }
    assert found["ray_grm_ray_serve_rows_total"][0]["value"] >= len(TEXTS)
    assert found["ray_grm_ray_serve_waiting_rows"][0]["value"] == 0


@pytest.mark.timeout(600)
def test_the_clients_get_them_too(served, expected, monkeypatch):
    scores, prompt, _ = expected
    monkeypatch.setenv("GRM_RAY_URL", served[1])
    monkeypatch.setenv("GRM_RAY_SERVE_TOKEN", served[2])

    def client(name):
        place = ROOT / "configs" / "clients" / f"{name}.py"
        spec = importlib.util.spec_from_file_location(name, place)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    trl, answers = client("trl_reward"), [[{"role": "assistant", "content": t}] for t in TEXTS]
    assert trl.grm_reward([CHAT] * 3, answers, step=1) == pytest.approx(scores, abs=1e-5)
    asked = CHAT[0]["content"]
    assert trl.grm_reward([asked] * 3, TEXTS) == pytest.approx(scores, abs=1e-5)
    verl = client("verl_reward").compute_score("set", TEXTS[0], None, {"question": asked})
    assert verl == pytest.approx(scores[0], abs=1e-5)
    queries = [prompt + text for text in TEXTS]
    found = client("openrlhf_reward").reward_func(queries, [prompt] * 3, labels=[None] * 3)
    assert found["rewards"].tolist() == pytest.approx(scores, abs=1e-5)
    assert client("vllm_classify").classify(queries) == pytest.approx(scores, abs=1e-5)


@pytest.mark.timeout(600)
def test_whoever_has_no_token_is_refused(served):
    for token in ("", "wrong", served[2][:-1], served[2] + "x"):
        assert ask(served, "/score", rows(), token=token)[0] == 401
    assert ask(served, "/score", rows(), headers={"Authorization": "Basic abc"})[0] == 401
    assert ask(served, "/score", rows(), headers={"Authorization": served[2]})[0] == 401
    place = served[3] / "runs" / "serve" / "token"
    assert place.stat().st_mode & 0o777 == 0o600
    assert served[2] not in (served[3] / "log").read_text()
    with urllib.request.urlopen(f"{served[1]}/health", timeout=10) as reply:
        assert json.load(reply) == {"status": "ok"}


@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    ("path", "body", "status", "words"),
    [
        ("/score", b"{", 400, "the body is not valid JSON"),
        ("/score", b"\xff\xfe", 400, "the body is not valid JSON"),
        ("/score", b"[" * 50_000, 400, "the body is not valid JSON"),
        ("/score", {}, 400, "rows: Field required"),
        ("/score", {"rows": []}, 400, "no row to score"),
        ("/score", {"rows": [0] * 30_000}, 400, r"rows\.0"),
        ("/score", {"rows": [{"response": "x"}]}, 400, "give either messages .* or prompt"),
        ("/score", {"rows": [{"prompt": 3, "response": "x"}]}, 400, r"rows\.0\.prompt"),
        ("/score", {"rows": [{"messages": [], "response": "x"}]}, 400, r"rows\.0\.messages"),
        ("/score", {"rows": [{"prompt": "", "response": ""}]}, 400, "row 0: it has no text"),
        ("/score", rows(["x"] * 65), 413, "65 rows; a request may have at most 64"),
        ("/score", rows(["x" * 100_000]), 413, "more than 100000 bytes"),
        ("/score", {"rows": [{"prompt": "a", "response": "\ud800"}]}, 400, "valid Unicode"),
        ("/get_reward", {"query": ["ab"], "prompts": []}, 400, "0 prompts for 1"),
        ("/classify", {"model": "m"}, 400, "give either input .* or messages"),
        ("/classify", {"messages": [*CHAT, *CHAT]}, 400, "the assistant's"),
        ("/scores", {}, 404, "Not Found"),
        ("/health", {}, 405, "Method Not Allowed"),
    ],
)
def test_what_is_wrong_is_said_and_the_service_goes_on(served, path, body, status, words):
    code, found = ask(served, path, body)
    assert code == status and re.search(words, found["error"]), found
    assert ask(served, "/score", rows())[0] == 200


def connection(served):
    host, port = served[1].removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=30)


@pytest.mark.timeout(600)
def test_whoever_sends_slowly_is_not_waited_for(served):
    began, lingering = time.monotonic(), []
    for _ in range(100):
        lingering.append(connection(served))
        lingering[-1].sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    body = connection(served)
    head = f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served[2]}\r\n"
    body.sendall(head.encode() + b"Content-Length: 50\r\n\r\n{")
    unread = connection(served)  # refused before its body was read, of which it sends no more
    unread.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 90000\r\n\r\n{")
    lingering.append(unread)
    assert ask(served, "/score", rows())[0] == 200  # others are served meanwhile
    for one in lingering:
        with contextlib.suppress(ConnectionResetError):
            while one.recv(1000):
                pass  # closed from the other side
    assert b"408" in body.recv(1000)
    assert 2 < time.monotonic() - began < 20


@pytest.mark.timeout(600)
def test_a_thousand_at_once_are_served_or_refused(served):
    def one(number):
        try:
            return ask(served, "/score", rows([f"{TEXTS[0]} {number}"]), timeout=120)[0]
        except (OSError, ValueError):  # refused before a word was said
            return 0

    before = psutil.Process(served[0].pid).memory_info().rss
    with concurrent.futures.ThreadPoolExecutor(250) as many:
        found = list(many.map(one, range(1000)))
    assert found.count(200) > 500 and set(found) <= {0, 200, 429, 503}, set(found)
    assert ask(served, "/score", rows())[0] == 200
    assert psutil.Process(served[0].pid).memory_info().rss - before < 200e6


@pytest.mark.timeout(600)
def test_a_killed_scorer_is_replaced_and_no_request_fails(served, expected):
    with concurrent.futures.ThreadPoolExecutor(8) as many:
        asked = [many.submit(ask, served, "/score", rows(), timeout=300) for _ in range(40)]
        os.kill(descendants(served[0], "ray::Scorer")[0].pid, signal.SIGKILL)
        asked += [many.submit(ask, served, "/score", rows(), timeout=300) for _ in range(40)]
        for status, found in (one.result() for one in asked):
            assert status == 200 and found["scores"] == pytest.approx(expected[0], abs=1e-5)
    assert "died and is being replaced" in (served[3] / "log").read_text()


def test_the_folder_of_one_that_serves_is_refused(served, run_here):
    answer = run_here(serve, "--config", str(served[3] / "serve.yaml"))
    refused(answer, str(served[3] / "runs" / "serve"), "another process is using it")


@pytest.mark.timeout(600)
def test_it_ends_in_peace(served):
    process, folder = served[0], served[3]
    workers = descendants(process, "ray::Scorer")
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 0, (folder / "log").read_text()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


def test_an_address_that_is_taken_is_refused(served, run_here, tmp_path):
    with contextlib.closing(connection_that_listens()) as taken:
        port = taken.getsockname()[1]
        argv = ("--config", str(served[3] / "serve.yaml"), f"port={port}", f"runs={tmp_path}")
        refused(run_here(serve, *argv), f"127.0.0.1:{port}: Address already in use")


def test_another_job_s_folder_is_left_alone(served, run_here, tmp_path):
    place = tmp_path / "runs" / "rm"
    place.mkdir(parents=True)
    (place / "config.yaml").write_text("job: rm\n")
    argv = ("--config", str(served[3] / "serve.yaml"), f"runs={tmp_path / 'runs'}", "name=rm")
    refused(run_here(serve, *argv), "is the folder of a run (rm); choose another name")
    assert (place / "config.yaml").read_text() == "job: rm\n"


def connection_that_listens():
    taken = socket.socket()
    taken.bind(("127.0.0.1", 0))
    taken.listen()
    return taken

import json
import logging
import math
import socket
import time
import urllib.request

import numpy as np
import pytest

from grm_ray.config.errors import NotWritten
from grm_ray.runtime import metric_sinks
from grm_ray.runtime.tracking import Tracker, check_backends

TAGS = {"run": "demo", "job": "ppo"}


def lines(run_dir):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_every_step_is_on_disk_when_log_returns(tmp_path):
    tracker = Tracker(tmp_path / "run", TAGS, [])
    tracker.log({"step": 1, "reward": 0.5, "policy_version": [0, 1], "note": "x", "kl": None})
    (row,) = lines(tmp_path / "run")
    assert row.pop("time") == pytest.approx(time.time(), abs=60)
    assert row == {"step": 1, "reward": 0.5, "policy_version": [0, 1], "note": "x", "kl": None}
    tracker.close()
    tracker.close()


def test_numbers_that_are_not_finite_become_null_and_are_named(tmp_path):
    tracker = Tracker(tmp_path, TAGS, ["tensorboard"])
    tracker.log(
        {
            "step": 1,
            "loss/policy": math.nan,
            "lr": np.float32(0.5),
            "margin": -math.inf,
            "parts": [1.0, math.nan],
        }
    )
    tracker.close()
    (row,) = lines(tmp_path)
    assert row["loss/policy"] is None and row["margin"] is None and row["parts"] == [1.0, None]
    assert row["lr"] == 0.5
    assert row["non_finite"] == ["loss/policy", "margin", "parts"]


@pytest.mark.parametrize("metrics", [{"reward": 1.0}, {"step": 1.5}, {"step": 1, "x": object()}])
def test_a_row_without_a_step_or_with_a_strange_value_is_refused_and_not_written(tmp_path, metrics):
    tracker = Tracker(tmp_path, TAGS, [])
    with pytest.raises(ValueError, match="metrics: '"):
        tracker.log(metrics)
    tracker.close()
    assert lines(tmp_path) == []


def test_resume_drops_the_steps_after_the_checkpoint_and_the_torn_line(tmp_path):
    first = Tracker(tmp_path, TAGS, [])
    for step in range(6):
        first.log({"step": step, "reward": float(step)})
    first.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "rew')

    again = Tracker(tmp_path, TAGS, [])
    assert again.resume(from_step=3) == 3
    again.log({"step": 4, "reward": 40.0})
    again.close()
    assert [(row["step"], row["reward"]) for row in lines(tmp_path)] == [
        (0, 0.0),
        (1, 1.0),
        (2, 2.0),
        (3, 3.0),
        (4, 40.0),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_half_a_line_left_by_a_kill_does_not_swallow_the_next_one(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "rew')
    tracker = Tracker(tmp_path, TAGS, [])
    tracker.log({"step": 2})
    tracker.close()
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[1])["step"] == 2


def test_tensorboard_shows_each_finite_number_at_its_step_and_hides_steps_taken_again(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Tracker(tmp_path, TAGS, ["tensorboard"])
    for step in (1, 2, 3):
        first.log({"step": step, "reward": float(step), "phase": "x", "loss": math.nan})
    first.close()
    again = Tracker(tmp_path, TAGS, ["tensorboard"])
    again.resume(from_step=1)
    again.log({"step": 2, "reward": 20.0})
    again.close()

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert set(events.Tags()["scalars"]) == {"reward", "non_finite"}
    assert [(e.step, e.value) for e in events.Scalars("reward")] == [(1, 1.0), (2, 20.0)]


def test_a_backend_that_is_missing_or_unknown_is_named_before_work_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="make install EXTRAS=cpu,demo,dev,wandb"):
        Tracker(tmp_path / "run", TAGS, ["wandb"])
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match="'wandbb' is not known; use one of tensorboard, wandb"):
        check_backends(["wandbb"])


def test_a_view_that_fails_is_dropped_with_a_warning_and_the_run_goes_on(
    tmp_path, monkeypatch, caplog
):
    class Broken:
        def __init__(self, *_):
            self.calls = 0

        def write(self, *_):
            self.calls += 1
            raise OSError("server away")

        def close(self):
            raise AssertionError("dropped already")

    monkeypatch.setitem(metric_sinks.MAKERS, "wandb", Broken)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    # whatever earlier tests did to the root logger's level and handlers
    caplog.set_level("WARNING", logger="grm_ray")
    monkeypatch.setattr(logging.getLogger("grm_ray"), "handlers", [caplog.handler])
    monkeypatch.setattr(logging.getLogger("grm_ray"), "propagate", False)
    tracker = Tracker(tmp_path, TAGS, ["wandb"])
    tracker.log({"step": 1, "reward": 1.0})
    tracker.log({"step": 2, "reward": 2.0})
    tracker.close()
    assert [row["step"] for row in lines(tmp_path)] == [1, 2]
    assert caplog.text.count("wandb gets no more metrics (server away)") == 1


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_metrics_reach_and_stay_on_the_prometheus_endpoint_of_ray(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray")
    if ray.is_initialized():
        pytest.skip("another test holds Ray in this process")
    port = free_port()
    ray.init(
        address="local",
        num_cpus=1,
        include_dashboard=False,
        _metrics_export_port=port,
        log_to_driver=False,
        logging_level="ERROR",
        _system_config={"metrics_report_interval_ms": 1000},
    )
    monkeypatch.setattr("grm_ray.runtime.gauges.AGAIN_S", 0.3)
    try:
        tracker = Tracker(tmp_path, TAGS, [])
        tracker.log({"step": 3, "objective/kl": 1.25, "loss/value": math.nan})
        found, deadline = {}, time.monotonic() + 120
        while "objective_kl" not in found and time.monotonic() < deadline:
            time.sleep(0.5)
            found = scrape(port)
        time.sleep(6)  # Ray keeps a gauge for two reports, 2 s here
        found = scrape(port)
        tracker.close()
    finally:
        ray.shutdown()
    value, labels = found["objective_kl"]
    assert value == 1.25
    assert 'run="demo"' in labels and 'job="ppo"' in labels
    assert found["non_finite"][0] == 1.0
    assert "loss_value" not in found


def scrape(port):
    """key -> (value, labels) of our gauges, nothing while the endpoint is not up."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
            text = reply.read().decode()
    except OSError:
        return {}
    found = {}
    for line in text.splitlines():
        if line.startswith("ray_grm_ray_"):
            name, rest = line.split("{", 1)
            labels, value = rest.rsplit("} ", 1)
            found[name.removeprefix("ray_grm_ray_")] = (float(value.split()[0]), labels)
    return found


def test_a_full_disk_ends_in_one_message_and_what_was_logged_stays(small_disk):
    tracker = Tracker(small_disk / "run", TAGS, [])
    tracker.log({"step": 1, "reward": 0.5})
    filler = small_disk / "filler"
    with pytest.raises(OSError, match="No space left"):
        filler.write_bytes(bytes(4 << 20))
    with pytest.raises(NotWritten, match=r"metrics.jsonl could not be written \(No space left"):
        for _ in range(2):  # the last page has room for some bytes
            tracker.log({"step": 2, "note": "x" * 5000})
    tracker.close()
    filler.unlink()
    again = Tracker(small_disk / "run", TAGS, [])
    again.resume(from_step=1)
    again.log({"step": 2})
    again.close()
    assert [row["step"] for row in lines(small_disk / "run")] == [1, 2]

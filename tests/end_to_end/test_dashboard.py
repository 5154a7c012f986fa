"""Every metric that `cluster/grafana/grm_ray.json` names is one that a real run exports."""

import json
import re
import signal
import time

import pytest

from tests.conftest import finish, job
from tests.end_to_end.conftest import ppo_config
from tests.end_to_end.exporter import DASHBOARD, asked_for, panels, scrape

SERVICE = "ray_grm_ray_serve_"  # of another job: see test_serve_job.py


@pytest.mark.slow
def test_a_run_exports_what_the_dashboard_asks_for(tmp_path, tiny_model, tiny_data, reward_model):
    path = ppo_config(
        tmp_path,
        tiny_model,
        tiny_data,
        reward_model[0] / "model",
        ppo={"steps": 10_000, "optimizer": {"learning_rate": 1.0e-4}},
        checkpoint={"every": 0},
    )
    wanted = {name for name in asked_for() if not name.startswith(SERVICE)}
    process = job("grm_ray.ppo", "--config", str(path), cwd=tmp_path)
    found, until = {}, time.monotonic() + 500
    while not found.keys() >= wanted and process.poll() is None:
        if time.monotonic() > until:
            break
        time.sleep(2)
        found |= scrape(process)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert not wanted - found.keys(), (sorted(found), output[-2000:])
    for series in (found[name] for name in wanted):
        assert {(one["run"], one["job"]) for one in series} == {("ppo", "ppo")}


def test_it_can_be_imported_and_each_query_is_of_the_chosen_runs():
    dashboard = json.loads(DASHBOARD.read_text())
    variables = {variable["name"]: variable for variable in dashboard["templating"]["list"]}
    assert list(variables) == ["datasource", "run", "service"]
    assert variables["datasource"]["type"] == "datasource"
    assert "id" not in dashboard and dashboard["uid"]  # Grafana gives the one, we the other
    source = {"type": "prometheus", "uid": "${datasource}"}
    for asked in (variables["run"], variables["service"]):
        assert asked["datasource"] == source
        assert re.fullmatch(r"label_values\(ray_grm_ray_\w+, run\)", asked["definition"])
    every = dashboard["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in panels():
        assert panel["datasource"] == source and panel["title"]
        for target in panel["targets"]:
            assert target["datasource"] == source
            variable = "$service" if SERVICE in target["expr"] else "$run"
            selected = re.findall(r"ray_grm_ray_\w+\{run=~\"(.*?)\"\}", target["expr"])
            assert selected == [variable], target["expr"]
            assert "{{run}}" in target["legendFormat"]


def test_no_panel_lies_over_another():
    taken = set()
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells

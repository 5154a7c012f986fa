"""What a job shows on the Prometheus endpoint of its own Ray, and what the dashboard asks for."""

import http.client
import json
import re
import urllib.request

import psutil

from tests.conftest import ROOT

DASHBOARD = ROOT / "cluster" / "grafana" / "grm_ray.json"


def panels():
    """The dashboard's panels that show something."""
    every = json.loads(DASHBOARD.read_text())["panels"]
    return [panel for panel in every if panel["type"] != "row"]


def asked_for():
    """Every metric that a query of the dashboard names."""
    found = set()
    for panel in panels():
        for target in panel["targets"]:
            names = set(re.findall(r"\bray_grm_ray_\w+", target["expr"]))
            assert names, target
            found |= names
    return found


def scrape(process, prefix="ray_grm_ray_"):
    """metric -> labels of each of its series, of all that the job's nodes export."""
    found = {}
    for address in _addresses(process):
        try:
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as reply:
                text = reply.read().decode()
        except (OSError, ValueError, http.client.HTTPException):  # another of its ports
            continue
        for line in text.splitlines():
            if line.startswith(prefix):
                name, labels = line.split("{", 1)
                labels = re.findall(r'(\w+)="([^"]*)"', labels.rsplit("}", 1)[0])
                found.setdefault(name, []).append(
                    dict(labels) | {"value": float(line.rsplit(" ", 1)[1])}
                )
    return found


def _addresses(process):
    """Where the nodes' agents that the job started listen: one of the ports is the exporter's."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            if not re.search("dashboard.*agent", " ".join(child.cmdline()), re.IGNORECASE):
                continue
            for one in child.net_connections("tcp"):
                if one.status == psutil.CONN_LISTEN:
                    everywhere = one.laddr.ip in ("0.0.0.0", "::")
                    yield f"{'127.0.0.1' if everywhere else one.laddr.ip}:{one.laddr.port}"
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue

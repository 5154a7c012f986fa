"""Imports run downward only, mathematics stays pure, every config loads."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "grm_ray"
LAYERS = [
    "jobs",
    "drivers",
    "workers",
    "training",
    "runtime",
    "models",
    "data",
    "rewards",
    "objectives",
    "reporting",
    "study",
    "config",
]
JOBS = {"ppo", "rm", "bon", "evaluate", "run_study", "run_overoptimization", "curate", "serve"}
JOBS |= {"export", "report", "command"}
FILES = sorted(PACKAGE.rglob("*.py"))


def layer(module: str) -> str | None:
    parts = module.split(".")
    if parts[0] != "grm_ray" or len(parts) < 2:
        return None
    return "jobs" if parts[1] in JOBS else parts[1]


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_run_downward_only(path):
    module = ".".join(["grm_ray", *path.relative_to(PACKAGE).with_suffix("").parts])
    here = layer(module)
    if here == "__init__":
        return
    assert here in LAYERS, f"{path} is in no layer"
    for target in imports(path):
        there = layer(target)
        if there in LAYERS:
            assert LAYERS.index(there) >= LAYERS.index(here), f"{here} imports {target}"


@pytest.mark.parametrize(
    ("folder", "forbidden"),
    [
        ("objectives", {"ray", "deepspeed", "vllm", "pyarrow", "grm_ray.config"}),
        ("rewards", {"ray", "deepspeed", "vllm", "pyarrow", "grm_ray.config"}),
        ("study", {"ray", "deepspeed", "vllm", "torch", "pyarrow", "grm_ray.config"}),
        ("models", {"ray", "deepspeed"}),
        ("config", {"ray", "deepspeed", "vllm", "torch"}),
        ("data", {"ray", "deepspeed"}),
    ],
)
def test_pure_layers_stay_pure(folder, forbidden):
    for path in (PACKAGE / folder).rglob("*.py"):
        for name in imports(path):
            prefixes = {".".join(name.split(".")[:n]) for n in (1, 2)}
            assert not prefixes & forbidden, f"{path} imports {name}"


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_loads(path):
    from grm_ray.config.best_of_n import BestOfNJob
    from grm_ray.config.judging import CurateJob, EvaluateJob, StudyJob
    from grm_ray.config.load import load
    from grm_ray.config.overoptimization import OveroptimizationJob
    from grm_ray.config.ppo import PpoJob
    from grm_ray.config.reward_model import RewardModelJob
    from grm_ray.config.serve import ServeJob
    from grm_ray.runtime.placement import declared

    schemas = {"rm": RewardModelJob, "ppo": PpoJob, "evaluate": EvaluateJob}
    schemas |= {"study": StudyJob, "curate": CurateJob, "bon": BestOfNJob, "serve": ServeJob}
    job = path.stem.split("_")[0]
    if path.stem.startswith("study_overoptimization"):
        schemas[job] = OveroptimizationJob
    if job == "cluster":
        assert declared(path)
    else:
        load(schemas[job], path)

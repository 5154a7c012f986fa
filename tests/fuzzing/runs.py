"""Run folders as a crash, a full disk or a careless hand leaves them, through `grm_ray.report`."""

from __future__ import annotations

import copy
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from grm_ray import report
from tests.conftest import ROOT
from tests.fuzzing import values
from tests.fuzzing.harness import Kind, command, judged, require
from tests.fuzzing.rows import columnar

CONFIG = """job: {job}
name: demo
policy: {{path: models/x}}
reward: {{path: runs/rm/model, members: null}}
ppo: {{steps: 6, kl: {{coefficient: 0.1}}}}
evaluation: {{every: 2}}
"""
# Figures of a study and of an evaluation as they were once measured.
RESULTS = ("study_reward_models_cpu.json", "study_overoptimization.json")


def _step(number: int) -> dict[str, Any]:
    evaluated = {"eval/reward": 0.1 * number, "eval/true_reward": 0.5, "eval/kl": 0.3 * number}
    return {
        "step": number,
        "time": 1.7e9 + number,
        "reward": 0.1 * number,
        "true_reward": 0.4 + 0.01 * number,
        "objective/kl": 0.2 * number,
        "response_length": 40.0,
        "tokens_per_second": 400.0,
        "phase/generate": 5.0,
        "phase/learn": 6.0,
        "members/a/mean": 0.1,
        "members/b/mean": 0.2,
        "disagreement": 0.3,
        "accuracy": 0.7,
        "lr": 1e-5,
        "non_finite": ["grad_norm"] if number == 3 else [],
        **({"guard/action": "warn", "guard/reason": "worse"} if number == 4 else {}),
        **(evaluated if number % 2 == 0 else {}),
    }


def _sample(number: int, gain: float) -> dict[str, Any]:
    return {
        "uid": f"{number}-0-0",
        "prompt": f"prompt {number}",
        "response": f"answer {number}",
        "reward": gain + number,
        "true_reward": 0.1 * number + gain,
        "length": 12,
    }


class Runs(Kind):
    def attempt(self, rng: random.Random) -> str:
        for path in Path().iterdir():
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        count = rng.choice([1, 1, 1, 2, 3])
        folders = [Path(f"runs/run-{i}") for i in range(count)]
        for folder in folders:
            if rng.random() < 0.15:
                self._result(rng, folder)
            else:
                self._run(rng, folder)
        given = [str(folder) for folder in folders]
        if rng.random() < 0.1:
            odd = [text for text in values.TEXTS if text and text[0] != "-" and "\0" not in text]
            given = [rng.choice([*odd, "runs", "runs/*", "runs/["])]
        if rng.random() < 0.1:
            given += ["--output", rng.choice(["page.html", "runs", "no/such/page.html"])]
        code, out, errors = command(report.main, *given)
        if code == 0:
            page = Path(out.strip()).read_text(encoding="utf-8")
            require("</html>" in page, "a page without an end")
            odd = re.search(r".{60}(\bNaN|>nan<|\binf\b).{20}", page)
            require(odd is None, f"a page with no number where one should be: {odd}")
        return judged(code, errors)

    def _run(self, rng: random.Random, folder: Path) -> None:
        (folder / "samples").mkdir(parents=True)
        job = rng.choice(["ppo", "ppo", "rm"])
        steps = [_step(n) for n in range(rng.choice([0, 1, 3, 7]))]
        config = CONFIG.format(job=job).encode()
        samples = {"before": 0.0, "after": 0.5, "step-00002": 0.2}
        samples |= {f"held-out-{n:05d}": 0.1 * n for n in (2, 4)}
        damage = rng.randrange(6)
        for _ in range(rng.choice([1, 1, 4])):
            if damage == 0 and steps:
                values.change(rng, steps)
        if damage == 1:
            config = values.damaged(rng, config)
        if damage == 2:
            lines = [
                "a: &a [*a]",
                "x: 2001-99-99",
                "reward: {members: [1, 2]}",
                "name: [1]",
                "name: {}",
            ]
            lines += ["reward: {members: {a: 1}}", "job: [ppo]", "ppo: {steps: x}", "ppo: {kl: 3}"]
            lines += ["ppo: {steps: 1.0e+400}", "ppo: 3", "policy: {path: [1]}", "!!bool x: 1"]
            config += f"{rng.choice(lines)}\n".encode()
            config = b"\n".join(dict((r.split(b":")[0], r) for r in config.split(b"\n")).values())
        metrics = b"".join(values.written(row).encode() + b"\n" for row in steps)
        if damage == 3:
            metrics = values.damaged(rng, metrics)
        (folder / "config.yaml").write_bytes(config)
        (folder / "metrics.jsonl").write_bytes(metrics)
        for name, gain in samples.items():
            rows: list[Any] = [_sample(n, gain) for n in range(rng.choice([0, 1, 5]))]
            path = folder / "samples" / f"{name}.parquet"
            if damage == 4 and rows:
                values.change(rng, rows)
                rows = [row for row in rows if isinstance(row, dict)]
                path.write_bytes(columnar(rng, rows, "parquet")[0])
            else:
                pq.write_table(pa.Table.from_pylist(rows), path)
            if damage == 5 and rng.random() < 0.5:
                path.write_bytes(values.damaged(rng, path.read_bytes()))
        entry = json.dumps({"file": "x", "line": 3, "reason": "empty"}).encode()
        if rng.random() < 0.3:
            (folder / "quarantine.jsonl").write_bytes(values.damaged(rng, entry))
        for name in ("ledger.jsonl", "timeline.jsonl"):
            if rng.random() < 0.2:
                (folder / name).write_bytes(values.damaged(rng, metrics))
        if rng.random() < 0.1:
            lost = rng.choice(sorted(folder.rglob("*")))
            shutil.rmtree(lost) if lost.is_dir() else lost.unlink()
            rng.choice([lambda: None, lost.mkdir, lambda: lost.symlink_to("nowhere")])()

    def _result(self, rng: random.Random, folder: Path) -> None:
        folder.mkdir(parents=True)
        path = ROOT / "benchmarks" / "results" / rng.choice(RESULTS)
        tree = copy.deepcopy(json.loads(path.read_text(encoding="utf-8")))
        for _ in range(rng.choice([1, 3])):
            values.change(rng, tree)
        raw = values.written(tree).encode()
        if rng.random() < 0.3:
            raw = values.damaged(rng, raw)
        name = rng.choice(["evaluation.json", "study.json", "best_of_n.json"])
        (folder / name).write_bytes(raw)

"""Model folders copied in part or damaged, through the dry runs of the jobs that read them."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path

import yaml

from grm_ray import command as entry
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.serve import ServeJob
from tests.fuzzing import values
from tests.fuzzing.configs import started
from tests.fuzzing.harness import Kind, command, judged
from tests.fuzzing.material import lay_out

FOLDER = "damaged"
SERVE = {"name": "x", "models": {"m": FOLDER}}
TRAIN = {"name": "x", "model": {"path": FOLDER}, "data": {"train": {"path": "data/pairs.jsonl"}}}
PPO = {
    "name": "x",
    "policy": {"path": FOLDER},
    "reward": {"path": "runs/rm_demo/model"},
    "data": {"train": {"path": "data/pairs.jsonl"}},
    "workers": {role: {"cpus": 0.1} for role in ("rollout", "learner", "scorer")},
}
REWARDED = {**PPO, "policy": {"path": "models/tiny"}, "reward": {"path": FOLDER}}


class Models(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        lay_out(folder)
        from transformers import AutoModelForSequenceClassification

        classifier, tiny = folder / "models" / "classifier", folder / "models" / "tiny"
        model = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1)
        shutil.copytree(tiny, classifier)
        model.save_pretrained(classifier)
        self._whole = {"ours": folder / "runs" / "rm_demo" / "model", "classifier": classifier}
        self._whole["policy"] = tiny

    def attempt(self, rng: random.Random) -> str:
        shutil.rmtree(FOLDER, ignore_errors=True)
        layout = rng.choice(sorted(self._whole))
        # Hard links: a damaged file gets a place of its own.
        shutil.copytree(self._whole[layout], FOLDER, copy_function=os.link)
        for _ in range(rng.choice([1, 1, 2])):
            self._damage(rng, Path(FOLDER))
        schema, job = rng.choice(
            [(ServeJob, SERVE), (RewardModelJob, TRAIN), (PpoJob, PPO), (PpoJob, REWARDED)]
        )
        Path("config.yaml").write_text(yaml.safe_dump(job), encoding="utf-8")
        arguments = ["--config", "config.yaml", "--dry-run"]
        code, _, errors = command(lambda: entry.main(schema, started, ""), *arguments)
        return judged(code, errors)

    def _damage(self, rng: random.Random, folder: Path) -> None:
        files = sorted(path for path in folder.iterdir() if path.is_file())
        if not files:
            return
        path = rng.choice(files)
        raw = path.read_bytes()
        kind = rng.randrange(6)
        path.unlink()
        if kind == 0:
            rng.choice([path.mkdir, lambda: path.symlink_to("nowhere"), lambda: None])()
        elif kind == 1 or path.suffix != ".json":
            path.write_bytes(values.damaged(rng, raw))
        else:
            try:
                tree = json.loads(raw)
            except ValueError:
                tree = {}
            values.change(rng, tree if rng.random() < 0.9 else [tree])
            if rng.random() < 0.05:
                tree = rng.choice([[], 3, "x", None, [1]])
            path.write_text(values.written(tree), encoding="utf-8")

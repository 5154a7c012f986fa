"""Damaged configs and overrides of every job, through the entry that users call, with --dry-run."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any, NoReturn, get_args

import yaml
from pydantic import BaseModel

from grm_ray import command as entry
from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.judging import CurateJob, EvaluateJob, StudyJob
from grm_ray.config.overoptimization import OveroptimizationJob
from grm_ray.config.ppo import PpoJob
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.config.serve import ServeJob
from tests.fuzzing import values
from tests.fuzzing.harness import Kind, command, judged
from tests.fuzzing.material import CONFIGS, lay_out

JOBS = {
    "rm": RewardModelJob,
    "ppo": PpoJob,
    "bon": BestOfNJob,
    "evaluate": EvaluateJob,
    "curate": CurateJob,
    "study": StudyJob,
    "study_overoptimization": OveroptimizationJob,
    "serve": ServeJob,
}
CLUSTER = "cluster.yaml"
# A study checks each of its jobs, which takes seconds.
_SHARE = {"study_overoptimization": 0.2, "study_overoptimization_gpu": 0.2}
_INSERTED = [
    "\t- x\n",
    "<<: *a\n",
    "a: &a {b: 1}\n<<: *a\n",
    "a: &a [*a]\n",
    "&a name: *a\n",
    "? [x]\n: y\n",
    "!!python/object/apply:os.system ['true']\n",
    "x: !!timestamp 2001-99-99\n",
    "x: 2001-13-40\n",
    "x: !!int abc\n",
    "x: !!float abc\n",
    "x: !!bool abc\n",
    "x: !!binary '*'\n",
    "---\n",
    "...\nx: 1\n",
    "%YAML 9.9\n---\n",
    "- x\n",
    ": \n",
    "{",
    "}",
    "]",
    '"',
    "'",
    "|",
    "x: |\n",
    "1: 2\n",
    "null: 1\n",
    "true: 1\n",
    "x: 1:2:3\n",
    "x: 0x" + "f" * 5000 + "\n",
    "x: " + "9" * 5000 + "\n",
    "[" * 3000 + "\n",
    "{a: " * 800 + "\n",
    "x: " + "[" * 500 + "]" * 500 + "\n",
    "x: *none\n",
    "seed: 0\nseed: 1\n",
    "name: [a\n",
    'x: "\\ud800"\n',
    'x: "\\0"\n',
    'name: "a\\nb"\n',
    "\x00",
    "\x1b[2J",
    "\ufeff",
    "!!map []\n",
    "x: !!set {a, b}\n",
    "x: !!omap [a: 1]\n",
    "x: !!pairs [a: 1]\n",
    "x: !!str {}\n",
    "!!null name: x\n",
]


def bomb(levels: int, merged: bool) -> str:
    """Few bytes that unfold to 10^levels values."""
    text = "a0: &a0 " + ("{k: v}" if merged else "[x, x, x, x, x, x, x, x, x, x]") + "\n"
    for level in range(1, levels):
        of = ", ".join([f"*a{level - 1}"] * 10)
        text += f"a{level}: &a{level} " + (f"{{<<: [{of}]}}" if merged else f"[{of}]") + "\n"
    return text


class Configs(Kind):
    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        lay_out(folder)
        self._texts = {}
        for path in CONFIGS:
            text = path.read_text(encoding="utf-8")
            self._texts[path.stem] = text.replace("smollm2-135m-instruct", "models/tiny")
        cluster = self._texts.pop("cluster_2x8")
        (folder / CLUSTER).write_text(cluster, encoding="utf-8")
        self._cluster = cluster
        self._keys = {name: keys(schema) for name, schema in JOBS.items()}

    def attempt(self, rng: random.Random) -> str:
        name = rng.choices(sorted(self._texts), [_SHARE.get(n, 1.0) for n in sorted(self._texts)])[
            0
        ]
        text = self._texts[name]
        job = next(j for j in sorted(JOBS, key=len, reverse=True) if name.startswith(j))
        config, cluster, overrides = Path("config.yaml"), Path(CLUSTER), list[str]()
        cluster.write_text(self._cluster, encoding="utf-8")
        raw = text.encode()
        kind = rng.randrange(12)
        if kind < 5:
            raw = self._tree(rng, text, self._keys[job])
        elif kind < 7:
            raw = self._text(rng, text)
        elif kind == 7:
            raw = values.damaged(rng, raw)
        elif kind < 11:
            overrides = self._overrides(rng, self._keys[job])
        else:
            other = values.damaged(rng, self._cluster.encode())
            cluster.write_bytes(other if rng.random() < 0.5 else self._tree(rng, self._cluster, []))
        config.write_bytes(raw)
        path = str(config)
        if rng.random() < 0.02:
            path = rng.choice([t for t in values.TEXTS if t and "\0" not in t and t[0] != "-"])
        elsewhere = ["--cluster", CLUSTER] if kind == 11 or rng.random() < 0.8 else []
        arguments = ["--config", path, "--dry-run", *elsewhere, "--", *overrides]
        code, _, errors = command(lambda: entry.main(JOBS[job], started, ""), *arguments)
        return judged(code, errors)

    def _tree(self, rng: random.Random, text: str, known: list[str]) -> bytes:
        tree = yaml.safe_load(text)
        for _ in range(rng.choice([1, 1, 1, 1, 1, 3])):
            if known and rng.random() < 0.4:
                put(tree, rng.choice(known), copy.deepcopy(self._value(rng)))
            elif rng.random() < 0.2:
                put(tree, rng.choice(known or ["nodes"]) + "." + values.word(rng), values.odd(rng))
            else:
                values.change(rng, tree)
        try:
            return yaml.safe_dump(tree, allow_unicode=rng.random() < 0.5, sort_keys=False).encode()
        except (yaml.YAMLError, UnicodeEncodeError, ValueError, RecursionError):
            return values.written(tree).encode()

    def _value(self, rng: random.Random) -> Any:
        return values.yaml_only(rng) if rng.random() < 0.05 else values.odd(rng)

    def _text(self, rng: random.Random, text: str) -> bytes:
        lines = text.splitlines(keepends=True)
        at = rng.randrange(len(lines) + 1)
        if rng.random() < 0.2:
            more = bomb(rng.choice([3, 6, 9]), rng.random() < 0.5)
            use = rng.choice(["", "name: *a2\n", "seed: *a2\n", "runs: [*a2]\n"])
            return (more + use + text).encode()
        if rng.random() < 0.2 and at < len(lines):
            lines.insert(at, lines[at])
        else:
            lines.insert(at, rng.choice(_INSERTED))
        return "".join(lines).encode()

    def _overrides(self, rng: random.Random, known: list[str]) -> list[str]:
        made = []
        for _ in range(rng.choice([1, 1, 2])):
            key = rng.choice(known)
            if rng.random() < 0.2:
                key = rng.choice(
                    [values.misspelt(rng, key), key + ".x", "." + key, key + ".", "", "a." * 3000]
                )
            value = values.written(values.near(rng, rng.choice([1, 0.5, "x", True, None])))
            if rng.random() < 0.4:
                value = rng.choice(
                    [*values.TEXTS, *_INSERTED, bomb(6, False), str(rng.choice([1e5, 3]))]
                )
            sign = "=" if rng.random() < 0.95 else rng.choice(["", " ", ":", "=="])
            made.append((key + sign + value).replace("\0", ""))  # no argument can hold that
        return made


def started(*_: Any) -> NoReturn:
    raise AssertionError("a dry run started a job")


def put(tree: Any, key: str, value: Any) -> None:
    """Set `key.path` of `tree`, making what is not there."""
    *parents, last = key.split(".")
    for parent in parents:
        if not isinstance(tree, dict):
            return
        if not isinstance(tree.get(parent), dict):
            tree[parent] = {}
        tree = tree[parent]
    if isinstance(tree, dict):
        tree[last] = value


def keys(schema: type[BaseModel], depth: int = 0) -> list[str]:
    """`key.path` of everything that a schema knows; members of mappings are named `x`."""
    found = []
    for name, field in schema.model_fields.items():
        found.append(name)
        for kind in _within(field.annotation):
            # A mapping's members have names of their own.
            inside = f"{name}.x" if "dict" in str(field.annotation) else name
            if depth < 6:
                found += [f"{inside}.{key}" for key in keys(kind, depth + 1)]
    return found


def _within(annotation: Any) -> list[type[BaseModel]]:
    """The sections that an annotation speaks of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [kind for part in get_args(annotation) for kind in _within(part)]

"""What the configs, requests and model folders of the cases lean on: tiny models and data."""

from __future__ import annotations

import gzip
import json
import re
from itertools import pairwise
from pathlib import Path

from tests.conftest import ROOT, WORDS, build_model

CONFIGS = sorted((ROOT / "configs").glob("*.yaml"))
_DATA = re.compile(r"\bdata/[\w./-]+\.jsonl(?:\.gz)?")


def lay_out(folder: Path) -> None:
    """`models/tiny`, reward models where the shipped configs look for theirs, and `data/`."""
    from transformers import AutoTokenizer

    from grm_ray.config.schema import Head, Model
    from grm_ray.data.chat import ScoringContract
    from grm_ray.models.backbone import load_causal_lm
    from grm_ray.models.checkpoint import save_reward_model
    from grm_ray.models.reward_model import RewardModel

    tiny = build_model(folder / "models" / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    contract = ScoringContract.of(tokenizer, 2048, "left")
    model = RewardModel(load_causal_lm(Model(path=str(tiny), dtype="float32")), Head())
    for run in ("rm_demo", "rm_grm"):
        (folder / "runs" / run).mkdir(parents=True)
        save_reward_model(model, Head(), tokenizer, contract, folder / "runs" / run / "model", "")
    rows = [
        {"prompt": f"{one} {two}", "chosen": f"{one}.", "rejected": f"{two}!"}
        for one, two in pairwise(WORDS)
    ]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    named = [found for path in CONFIGS for found in _DATA.findall(path.read_text("utf-8"))]
    for name in ["data/pairs.jsonl", *named]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())

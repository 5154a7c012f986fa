"""Scoring: our packed scorer against a transformers loop, in conversations a second.

The loop is what a user writes: AutoModelForSequenceClassification, batches of 8 rows as they come,
padded to the longest. Both have the same weights, precision, rows and threads, and their scores are
compared. Sets of rows: unrelated ones (each prompt once, the chosen answer), and 8 answers to each
prompt (its own two, and six to the prompts after it: here only lengths count). How much a shared
prompt saves depends on how long it is beside its answers, so a file of lists can be measured too.
Passes of either side take turns, three times; the fastest counts.

    python benchmarks/scoring.py --pairs pairs.jsonl.gz --lists lists.jsonl.gz

`--pairs`: preference rows, the demo's without it; `--lists`: rows with a prompt and `candidates`,
of which 8 are taken.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import ScoringContract, answer_tokens, prompt_tokens
from grm_ray.data.files import DEMO
from grm_ray.models import backbone
from grm_ray.models.reward_model import RewardModel
from grm_ray.models.scoring import score_rows

LENGTH, BATCH, ANSWERS, TIMES = 512, 8, 8, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=Path)
    parser.add_argument("--lists", type=Path)
    parser.add_argument("--rows", type=int, default=128)
    parser.add_argument("--budget", type=int, default=1024)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    path = backbone.resolve(backbone.EMBEDDED)
    tokenizer = backbone.load_tokenizer(path)
    ours, theirs = models(path, tokenizer)
    sets = of_pairs(arguments.pairs or DEMO / "preferences.jsonl", arguments.rows)
    if arguments.lists is not None:
        sets["lists"] = of_lists(arguments.lists, arguments.rows)
    result: dict[str, Any] = {"name": "scoring", "unit": "conversations/s"}
    for name, texts in sets.items():
        rows = tokens(texts, tokenizer)
        result[name] = compare(ours, theirs, rows, arguments.budget)
        print(name, json.dumps(result[name]))
    from machine import finish

    finish({**result, "ratio": result["unrelated"]["ratio"], "dtype": str(theirs.dtype)})


def models(path: str, tokenizer: Any) -> tuple[RewardModel, Any]:
    """Our reward model with a random head, and transformers' with the same weights."""
    from transformers import AutoModelForSequenceClassification

    dtype = backbone.resolve_dtype("auto")
    torch.manual_seed(0)
    ours = RewardModel(backbone.load_causal_lm(Model(path=path), path), Head()).eval()
    theirs = AutoModelForSequenceClassification.from_pretrained(
        path, num_labels=1, dtype=getattr(torch, dtype)
    ).eval()
    theirs.config.pad_token_id = 0  # the tokenizer's own is the terminal token, which is scored
    assert tokenizer.eos_token_id != 0
    with torch.no_grad():
        torch.nn.init.normal_(theirs.score.weight, std=0.05)
        ours.head.layers[0].weight.copy_(theirs.score.weight)
    return ours, theirs


def of_pairs(path: Path, rows: int) -> dict[str, list]:
    """(messages, answer) of unrelated conversations, and of `ANSWERS` answers a prompt."""
    pairs = {json.dumps(messages(row["prompt"])): row for row in lines(path)}
    asked = [(json.loads(prompt), row) for prompt, row in pairs.items()]
    together = []
    for number, (prompt, row) in enumerate(asked[: rows // ANSWERS]):
        others = [text(other["chosen"]) for _, other in asked[number + 1 :]]
        answers = dict.fromkeys([text(row["chosen"]), text(row["rejected"]), *others])
        together += [(prompt, answer) for answer in list(answers)[:ANSWERS]]
    unrelated = [(prompt, text(row["chosen"])) for prompt, row in asked[:rows]]
    return {"unrelated": unrelated, "eight_answers": together}


def of_lists(path: Path, rows: int) -> list:
    """(messages, answer) of the first prompts with `ANSWERS` candidates or more."""
    lists = [
        (messages(row["prompt"]), list(dict.fromkeys(row["candidates"]))) for row in lines(path)
    ]
    long = [(prompt, answers) for prompt, answers in lists if len(answers) >= ANSWERS]
    return [(p, answer) for p, answers in long[: rows // ANSWERS] for answer in answers[:ANSWERS]]


def lines(path: Path) -> list[dict[str, Any]]:
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def messages(prompt: Any) -> list[dict[str, str]]:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


def text(answer: Any) -> str:
    """Of an answer that is a text, or a list of one message."""
    return answer if isinstance(answer, str) else answer[-1]["content"]


def tokens(texts: list, tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    contract = ScoringContract.of(tokenizer, LENGTH, "left")
    rows = []
    for prompt, answer in texts:
        closed = contract.close(answer_tokens(tokenizer, answer))
        fitted = contract.fit(prompt_tokens(tokenizer, prompt), closed)
        if fitted is not None:
            rows.append((np.array(fitted[0]), np.array(fitted[1])))
    return rows


def compare(ours: RewardModel, theirs: Any, rows: list, budget: int) -> dict[str, Any]:
    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for _ in range(TIMES):
        began = time.perf_counter()
        mine = score_rows(ours, rows, budget)
        seconds["ours"].append(time.perf_counter() - began)
        began = time.perf_counter()
        other = loop(theirs, rows)
        seconds["theirs"].append(time.perf_counter() - began)
    rate = {name: len(rows) / min(taken) for name, taken in seconds.items()}
    return {
        "ours": round(rate["ours"], 2),
        "theirs": round(rate["theirs"], 2),
        "ratio": round(rate["ours"] / rate["theirs"], 2),
        "conversations": len(rows),
        "mean_tokens": round(float(np.mean([len(p) + len(a) for p, a in rows])), 1),
        "largest_difference_in_deviations": float(np.abs(mine - other).max() / other.std()),
        "seconds": seconds,
    }


@torch.inference_mode()
def loop(model: Any, rows: list) -> np.ndarray:
    scores = []
    for at in range(0, len(rows), BATCH):
        batch = [np.concatenate(row) for row in rows[at : at + BATCH]]
        longest = max(map(len, batch))
        ids = torch.zeros(len(batch), longest, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for i, row in enumerate(batch):
            ids[i, : len(row)] = torch.as_tensor(row)
            mask[i, : len(row)] = 1
        scores.append(model(input_ids=ids, attention_mask=mask).logits[:, 0].float())
    return torch.cat(scores).numpy()


if __name__ == "__main__":
    main()

"""Builds the embedded demo data: `python -m grm_ray.drivers.demo_data [--out DIR]`.

Samples answers to the demo's prompts from the embedded model with vLLM, judges them with
`grm_ray.rewards.judge`, makes preference pairs of the clearly better and the clearly worse, and
turns a quarter of the training labels round. Writes `preferences.jsonl` and `prompts.jsonl`.

Everything that is drawn comes from fixed seeds. vLLM's rounding on a CPU depends on which rows
are computed together, so the company is fixed too: the engine runs in this process, all requests
are queued in file order before its first step, at most `SEQUENCES` run at once, on one thread.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import random
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grm_ray.data.demo.prompts import DemoPrompt, demo_prompts, policy_prompts
from grm_ray.rewards.judge import judge

OUT = Path(__file__).parent.parent / "data" / "demo"
SAMPLES_PER_PROMPT = 4
MAX_TOKENS = 64
SEQUENCES = 32
FIRST_SAMPLE_SEED = 10_000
LABEL_SEED = 7
ORDER_SEED = 11

MIN_GAP = 0.15
"""How much better by the judge the chosen answer is, at least."""
FLIPPED_SHARE = 0.25
TRAIN_PAIRS, TEST_PAIRS = 800, 200
PPO_TRAIN_PROMPTS, PPO_EVAL_PROMPTS = 300, 192


@dataclass(frozen=True)
class Sample:
    """One answer: its prompt, its text, its length in tokens (end token not counted)."""

    prompt_id: str
    text: str
    tokens: int


@dataclass(frozen=True)
class JudgedPair:
    """`better` beats `worse` by the judge, by `gap` = `score_better` - `score_worse` > 0."""

    prompt: DemoPrompt
    better: Sample
    worse: Sample
    score_better: float
    score_worse: float

    @property
    def gap(self) -> float:
        return self.score_better - self.score_worse

    @property
    def lean(self) -> tuple[int, int]:
        """(+1, 0 or -1) in words and in tokens: does the longer, neither or the shorter win?"""
        words = len(self.better.text.split()) - len(self.worse.text.split())
        tokens = self.better.tokens - self.worse.tokens
        return (words > 0) - (words < 0), (tokens > 0) - (tokens < 0)


def sample(prompts: list[DemoPrompt], per_prompt: int = SAMPLES_PER_PROMPT) -> list[Sample]:
    """`per_prompt` answers to each prompt, temperature 1, a seed of its own for each."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # else requests arrive while it computes
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = "1"
    from vllm import LLM, SamplingParams

    from grm_ray.models.embedded import embedded_model_path

    engine = LLM(
        model=str(embedded_model_path()),
        dtype="float32",  # no CPU lacks it, and its rounding moves fewer draws than bf16's
        enforce_eager=True,
        max_model_len=256,
        max_num_seqs=SEQUENCES,
        enable_prefix_caching=False,
        seed=0,
    )
    asked = [prompt for prompt in prompts for _ in range(per_prompt)]
    conversations: list[Any] = [_turn("user", prompt.text) for prompt in asked]
    outputs = engine.chat(
        conversations,
        [
            SamplingParams(temperature=1.0, max_tokens=MAX_TOKENS, seed=FIRST_SAMPLE_SEED + i)
            for i in range(len(asked))
        ],
    )
    samples = []
    for prompt, output in zip(asked, outputs, strict=True):
        answer = output.outputs[0]
        ended = answer.finish_reason == "stop"
        samples.append(Sample(prompt.prompt_id, answer.text.strip(), len(answer.token_ids) - ended))
    return samples


def make_pairs(prompts: list[DemoPrompt], samples: list[Sample], wanted: int) -> list[JudgedPair]:
    """`wanted` clean pairs, at most two a prompt, no answer used twice, balanced in length.

    Each prompt offers every way to pair its answers with a gap of `MIN_GAP` or more. Prompt by
    prompt the way is taken that makes the most pairs, and among those the one that keeps "the
    longer one wins" and "the shorter one wins" closest to even so far, in words and in tokens.
    Of what that gives beyond `wanted`, the pairs that lean to the heavier side go first, those
    with the smallest gap before others.

    Raises:
        ValueError: fewer than `wanted` pairs can be made.
    """
    answers: dict[str, list[Sample]] = {}
    for row in samples:
        if row.text:
            answers.setdefault(row.prompt_id, []).append(row)
    pairs: list[JudgedPair] = []
    balance = (0, 0)
    for prompt in prompts:
        options = _matchings(_candidates(prompt, answers.get(prompt.prompt_id, [])))
        if not options:
            continue
        best = min(options, key=lambda option: _cost(option, balance))
        pairs += best
        balance = _add(balance, best)
    if len(pairs) < wanted:
        raise ValueError(f"only {len(pairs)} pairs with a judge gap of {MIN_GAP}, not {wanted}")
    while len(pairs) > wanted:
        balance = _add((0, 0), pairs)
        pairs.remove(min(pairs, key=lambda p: (_imbalance(_sub(balance, p)), p.gap)))
    return pairs


def _candidates(prompt: DemoPrompt, answers: list[Sample]) -> list[JudgedPair]:
    scored = [(judge(prompt.text, answer.text), answer) for answer in answers]
    pairs = []
    for one, other in itertools.combinations(scored, 2):
        (high, better), (low, worse) = (one, other) if one[0] >= other[0] else (other, one)
        if high - low >= MIN_GAP and better.text != worse.text:
            pairs.append(JudgedPair(prompt, better, worse, high, low))
    return pairs


def _matchings(pairs: list[JudgedPair]) -> list[tuple[JudgedPair, ...]]:
    """All largest sets (one or two pairs) in which no answer stands twice."""
    double: list[tuple[JudgedPair, ...]] = [
        (one, other)
        for one, other in itertools.combinations(pairs, 2)
        if len({id(one.better), id(one.worse), id(other.better), id(other.worse)}) == 4
    ]
    return double or [(pair,) for pair in pairs]


def _cost(option: tuple[JudgedPair, ...], balance: tuple[int, int]) -> tuple[int, float]:
    return _imbalance(_add(balance, option)), -min(pair.gap for pair in option)


def _imbalance(balance: tuple[int, int]) -> int:
    return abs(balance[0]) + abs(balance[1])


def _add(balance: tuple[int, int], pairs: Any) -> tuple[int, int]:
    leans = [pair.lean for pair in pairs]
    return balance[0] + sum(w for w, _ in leans), balance[1] + sum(t for _, t in leans)


def _sub(balance: tuple[int, int], pair: JudgedPair) -> tuple[int, int]:
    return balance[0] - pair.lean[0], balance[1] - pair.lean[1]


def preference_rows(pairs: list[JudgedPair], split: str, flipped_share: float) -> list[dict]:
    """Rows in TRL's conversational preference format, in random order, labels flipped at random.

    `judge_chosen` and `judge_rejected` belong to the answers that stand in those columns: in a
    flipped row `judge_chosen` is the smaller one.
    """
    rng = random.Random(LABEL_SEED)
    flips = set(rng.sample(range(len(pairs)), round(flipped_share * len(pairs))))
    rows = []
    for i, pair in enumerate(pairs):
        sides = [(pair.better, pair.score_better), (pair.worse, pair.score_worse)]
        (chosen, high), (rejected, low) = reversed(sides) if i in flips else sides
        rows.append(
            {
                "prompt": _turn("user", pair.prompt.text),
                "chosen": _turn("assistant", chosen.text),
                "rejected": _turn("assistant", rejected.text),
                "split": split,
                "flipped": i in flips,
                "judge_chosen": round(high, 4),
                "judge_rejected": round(low, 4),
                "prompt_id": pair.prompt.prompt_id,
            }
        )
    random.Random(ORDER_SEED).shuffle(rows)
    return rows


def prompt_rows() -> list[dict]:
    """The prompts for PPO, drawn from `policy_prompts`: to train on, and held-out ones."""
    prompts = policy_prompts()
    rng = random.Random(ORDER_SEED)
    rows = []
    for split, held_out, count in (
        ("train", False, PPO_TRAIN_PROMPTS),
        ("eval", True, PPO_EVAL_PROMPTS),
    ):
        for prompt in rng.sample([p for p in prompts if p.held_out == held_out], count):
            turn = _turn("user", prompt.text)
            rows.append({"prompt": turn, "split": split, "prompt_id": prompt.prompt_id})
    return rows


def _turn(role: str, content: str) -> list[dict[str, str]]:
    return [{"role": role, "content": content}]


def _write(path: Path, rows: list[dict]) -> str:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode("utf-8"))
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def build(out: Path, samples: list[Sample]) -> dict[str, str]:
    """Write both files to `out`; returns their SHA-256 by name."""
    prompts = demo_prompts()
    train = make_pairs([p for p in prompts if not p.held_out], samples, TRAIN_PAIRS)
    test = make_pairs([p for p in prompts if p.held_out], samples, TEST_PAIRS)
    preferences = preference_rows(train, "train", FLIPPED_SHARE)
    preferences += preference_rows(test, "test", 0.0)
    return {
        "preferences.jsonl": _write(out / "preferences.jsonl", preferences),
        "prompts.jsonl": _write(out / "prompts.jsonl", prompt_rows()),
    }


def main(arguments: list[str] | None = None) -> int:
    """Command line; prints the SHA-256 of each file written."""
    parser = argparse.ArgumentParser(
        prog="python -m grm_ray.drivers.demo_data", description=__doc__
    )
    parser.add_argument("--out", type=Path, default=OUT, help="folder to write to")
    parser.add_argument(
        "--samples",
        type=Path,
        help="keep the sampled answers in this file; where it exists, take them from it",
    )
    options = parser.parse_args(arguments)
    try:
        if options.samples and options.samples.exists():
            lines = options.samples.read_text(encoding="utf-8").splitlines()
            samples = [Sample(**json.loads(line)) for line in lines]
        else:
            samples = sample(demo_prompts())
            if options.samples:
                _write(options.samples, [asdict(row) for row in samples])
        for name, digest in build(options.out, samples).items():
            print(f"{digest}  {options.out / name}")
    except ValueError as error:
        print(f"demo_data: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

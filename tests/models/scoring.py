"""Conversations of many kinds, a random reward model, and scores by every road."""

import random

import numpy as np
import torch
from transformers import AutoTokenizer

from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.data.packing import pack
from grm_ray.models.backbone import load_causal_lm
from grm_ray.models.reward_model import RewardModel
from tests.conftest import WORDS

ODD = ["naïve café", "дождь идёт", "雨が降る", "🐈‍⬛ ∑∞", "a\ttab\nand a line"]


def conversations() -> list[tuple[list[dict[str, str]], list[str]]]:
    """16 prompts with four answers each: short and long, several turns, system, beyond ASCII."""
    rng = random.Random(3)

    def text(least: int, most: int) -> str:
        words = rng.choices(WORDS, k=rng.randint(least, most))
        return " ".join([*words, rng.choice(ODD)] if rng.random() < 0.4 else words)

    rules = "You look after " + " ".join(WORDS * 3)  # a long start that prompts share
    made = []
    for number in range(16):
        messages = [{"role": "system", "content": rules}] if number % 3 == 0 else []
        for _ in range(number % 4):
            messages.append({"role": "user", "content": text(1, 12)})
            messages.append({"role": "assistant", "content": text(1, 12)})
        messages.append({"role": "user", "content": text(1, 40)})
        made.append((messages, [text(0, 30) + "." for _ in range(4)]))
    return made


def reward_model(path, head: Head, dtype: str = "float32", **model) -> RewardModel:
    """`path` with a random head whose scores spread about 1."""
    torch.manual_seed(5)
    lm = load_causal_lm(Model(path=str(path), dtype=dtype, **model))
    made = RewardModel(lm, head).eval()
    for parameter in made.parameters():
        if parameter.dim() == 1:  # a random model's norms and biases too
            parameter.data += 0.1 * torch.randn_like(parameter)
    return spread(made, path)


@torch.no_grad()
def spread(model: RewardModel, path) -> RewardModel:
    """Scale the head so that its scores of `conversations` have a standard deviation of 1."""
    tokenizer = AutoTokenizer.from_pretrained(path)
    deviation = packed_scores(model, tokenizer, ScoringContract.of(tokenizer, 512, "left")).std()
    last = model.head.layers[-1]
    last.weight /= float(deviation)
    if last.bias is not None:
        last.bias /= float(deviation)
    return model


@torch.no_grad()
def packed_scores(model: RewardModel, tokenizer, contract: ScoringContract) -> np.ndarray:
    """Scores of all `conversations` in one packed sequence, prompts shared."""
    groups = []
    for messages, answers in conversations():
        prompt, sides = contract.tokens(tokenizer, messages, answers)
        groups.append((np.array(prompt), [np.array(side) for side in sides]))
    outputs, _ = model(pack(groups))
    return model.head.score(outputs).numpy().astype(float)


def ids(tokenizer, contract: ScoringContract) -> list[list[int]]:
    """Every conversation's tokens as the contract has them."""
    made = []
    for messages, answers in conversations():
        prompt, sides = contract.tokens(tokenizer, messages, answers)
        made += [prompt + side for side in sides]
    return made


def templated(tokenizer) -> list[list[int]]:
    """Every conversation's tokens as a stranger gets them: the chat template, nothing else."""
    return [
        tokenizer.apply_chat_template(
            [*messages, {"role": "assistant", "content": answer}], return_dict=False
        )
        for messages, answers in conversations()
        for answer in answers
    ]


@torch.no_grad()
def classifier_scores(model, tokenizer, rows: list[list[int]], side: str) -> np.ndarray:
    """Scores of a transformers sequence classifier, in padded batches of 16."""
    tokenizer.padding_side = side
    scores = []
    for at in range(0, len(rows), 16):
        batch = tokenizer.pad({"input_ids": rows[at : at + 16]}, return_tensors="pt")
        scores += model(**batch).logits[:, 0].tolist()
    return np.array(scores)

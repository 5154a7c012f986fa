"""The model card of a reward model: what it learned from, how good it is, how to ask it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml

Format = Literal["folder", "sequence-classification", "adapter"]
USAGE = "## Usage"
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def model_card(
    name: str,
    *,
    base_model: str,
    data: Sequence[Mapping[str, Any]],
    losses: Mapping[str, Any],
    scores: Sequence[Mapping[str, Any]],
    head: Mapping[str, Any],
    contract: Mapping[str, Any],
    license: str | None = None,
    config: Mapping[str, Any] | None = None,
) -> str:
    """A model card in Markdown, with the model hub's metadata before it.

    Args:
        base_model: the hub id, or a name; only a hub id goes into the metadata.
        data: one mapping a source: `path`, `use` ("training" or the evaluation set's name), `rows`
            that were used, and optionally `left_out` (reason -> rows) and `weight`.
        losses: what was minimised, by name, in the order to be shown.
        scores: one mapping an evaluation: `set`, `value`, `low`, `high` (95 % interval; both may be
            missing), `rows`, and optionally `metric` (accuracy).
        head: the fields of `config.schema.Head`.
        contract: the fields of `data.chat.ScoringContract`.
        license: the hub's short name, such as `apache-2.0`; None: not stated.
        config: the whole config of the run, shown at the end.
    """
    training = [source["path"] for source in data if source["use"] == "training"]
    metadata = {
        "license": license,
        "base_model": base_model if HUB_ID.fullmatch(base_model) else None,
        "datasets": [path for path in training if HUB_ID.fullmatch(path)] or None,
        "library_name": "transformers",
        "pipeline_tag": "text-classification",
        "tags": ["reward-model", "rlhf", "grm"],
    }
    stated = {key: value for key, value in metadata.items() if value is not None}
    parts = [
        f"---\n{yaml.safe_dump(stated, sort_keys=False)}---",
        f"# {name}",
        f"A reward model trained by grm_ray from `{base_model}`. It scores an answer to a "
        "conversation. Scores are raw and unbounded; only differences between answers to the "
        "same prompt are meaningful.",
        "## Evaluation",
        _table(("evaluation set", "metric", "value", "95 % interval", "rows"), map(_score, scores))
        if scores
        else "It was not evaluated.",
        "## Training data",
        _table(("source", "used for", "rows", "left out"), map(_source, data)),
        "## Loss",
        "\n".join(f"- {key}: {value}" for key, value in losses.items()),
        "## Input and score",
        "\n".join(f"- {line}" for line in [*contract_in_words(contract), head_in_words(head)]),
        usage("folder", contract),
    ]
    if config is not None:
        shown = json.dumps(dict(config), indent=1, ensure_ascii=False)
        parts += ["## Configuration", f"```json\n{shown}\n```"]
    return "\n\n".join(parts) + "\n"


def exported(
    card: str, format: Format, contract: Mapping[str, Any], differ: Sequence[str] = ()
) -> str:
    """`card` with the usage of another format.

    Args:
        differ: kinds of conversations that the exported chat template writes otherwise than the
            contract (`models.export`).
    """
    section = usage(format, contract, differ)
    before, found, after = card.partition(f"{USAGE}\n")
    if not found:
        return (
            f"{card.rstrip()}\n\n{section}\n" if card.strip() else f"# Reward model\n\n{section}\n"
        )
    following = re.search(r"^## ", after, re.MULTILINE)
    rest = after[following.start() :] if following else ""
    return f"{before}{section}\n" + (f"\n{rest}" if rest else "")


def contract_in_words(contract: Mapping[str, Any]) -> list[str]:
    """Sentences that say which tokens are scored."""
    length, truncation = contract["max_length"], contract["truncation"]
    if contract["layout"] == "answer":
        tokens = (
            "The tokens are those of the chat template with the assistant's turn opened, then the "
            f"answer's (no special tokens), then token {contract['terminal_token_id']} once, and "
            "nothing after it."
        )
    else:
        twice = (
            " The templated text is tokenised with special tokens, so that the BOS token "
            "occurs twice."
            if contract["special_tokens_twice"]
            else ""
        )
        tokens = (
            f"The tokens are those that the chat template makes of the whole conversation.{twice}"
        )
    cut = {
        "left": "the beginning of the conversation is cut off",
        "right": "the end of the answer is cut off",
        "drop": "the pair is left out of training and its evaluation, and a scorer cuts off the "
        "beginning of the conversation",
    }[truncation]
    return [
        tokens,
        "The score is read at the last of them.",
        f"At most {length} tokens are read; if there are more, {cut}.",
    ]


def head_in_words(head: Mapping[str, Any]) -> str:
    """One sentence on the map from hidden state to score."""
    form = (
        f"one hidden ReLU layer of {head['hidden']}"
        if head["kind"] == "mlp"
        else "one linear map" + (" with a bias" if head.get("bias") else "")
    )
    if head.get("members", 1) > 1:
        return (
            f"The head is {form} per member, computed in float32; the score is the mean of "
            f"{head['members']} members, each trained on its own bootstrap sample of the pairs."
        )
    if not head.get("attributes"):
        return f"The head is {form}, computed in float32."
    pairs = zip(head["attributes"], head["weights"], strict=True)
    summed = " + ".join(f"{weight:g} {name}" for name, weight in pairs)
    return f"The head is {form}, computed in float32; the score is {summed}."


def usage(format: Format, contract: Mapping[str, Any], differ: Sequence[str] = ()) -> str:
    """The section that shows how to get a score, in a few lines of code."""
    if format == "folder":
        text = f"```python{_OURS}```\n\n{_ELSEWHERE}"
    elif format == "adapter":
        text = f"```python{_ADAPTER}```"
    else:
        warning = f"{differing(contract, differ)}\n\n" if differ else ""
        ids = _BY_HAND if differ and contract["layout"] == "answer" else _TEMPLATED
        ids = ids.replace("TERMINAL", str(contract["terminal_token_id"]))
        text = f"{warning}```python{_CLASSIFIER.replace('IDS', ids.strip())}```\n\n{_VLLM}"
    return f"{USAGE}\n\n{text}"


def differing(contract: Mapping[str, Any], differ: Sequence[str]) -> str:
    """What to tell people when the chat template does not write what the contract builds."""
    kinds = ", ".join(differ)
    if contract["layout"] == "template":
        how = "tokenizer(tokenizer.apply_chat_template(messages, tokenize=False))['input_ids']"
    else:
        how = (
            "tokenizer.apply_chat_template(messages[:-1], add_generation_prompt=True, "
            "return_dict=False) + tokenizer(messages[-1]['content'], add_special_tokens=False)"
            f"['input_ids'] + [{contract['terminal_token_id']}]"
        )
    return (
        "For these conversations the chat template writes other tokens than the model was "
        f"trained on: {kinds}. Build the ids like this: `{how}`."
    )


_OURS = """
from grm_ray.data.packing import pack
from grm_ray.models.backbone import load_tokenizer
from grm_ray.models.checkpoint import load_reward_model
import numpy as np

model, contract, _ = load_reward_model(FOLDER)
tokenizer = load_tokenizer(FOLDER)
prompt, answers = contract.tokens(tokenizer, messages, ["one answer", "another"])
outputs, _ = model(pack([(np.array(prompt), [np.array(answer) for answer in answers])]))
scores = model.head.score(outputs)  # one an answer
"""
_ELSEWHERE = """For plain transformers and vLLM, a model with a linear head is exported by

```
python -m grm_ray.export FOLDER TARGET --format sequence-classification
```"""
_ADAPTER = """
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE_MODEL), FOLDER)
head = load_file(f"{FOLDER}/reward_head.safetensors")  # its form: grm_ray.json
hidden = model(input_ids, output_hidden_states=True).hidden_states[-1][0, -1]
"""
_TEMPLATED = """
ids = tokenizer.apply_chat_template(messages, return_dict=False)  # the last message is the answer
"""
_BY_HAND = """
*prompt, answer = messages
ids = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
ids += tokenizer(answer["content"], add_special_tokens=False)["input_ids"] + [TERMINAL]
"""
_CLASSIFIER = """
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(FOLDER)
model = AutoModelForSequenceClassification.from_pretrained(FOLDER).eval()
IDS
with torch.no_grad():
    score = model(torch.tensor([ids])).logits[0, 0].item()
"""
_VLLM = """In batches, pad with `tokenizer.pad(..., return_tensors="pt")`, on either side. With vLLM
(`vllm serve FOLDER --runner pooling`, or here) scores are raw too:

```python
from vllm import LLM

llm = LLM(FOLDER, runner="pooling")
score = llm.classify({"prompt_token_ids": ids})[0].outputs.probs[0]
```"""


def _table(titles: Sequence[str], rows: Any) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _score(score: Mapping[str, Any]) -> tuple[str, ...]:
    low, high = score.get("low"), score.get("high")
    interval = "" if low is None or high is None else f"{low:.3f} to {high:.3f}"
    metric = score.get("metric", "accuracy")
    return score["set"], metric, f"{score['value']:.3f}", interval, f"{score['rows']}"


def _source(source: Mapping[str, Any]) -> tuple[str, ...]:
    reasons = source.get("left_out") or {}
    left = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    weight = source.get("weight", 1)
    use = source["use"] + (f" (weight {weight:g})" if weight != 1 else "")
    return f"`{source['path']}`", use, f"{source['rows']}", left or "-"

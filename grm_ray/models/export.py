"""Reward models as others read them: `AutoModelForSequenceClassification`, and vLLM from there.

Both take the hidden state of the last token that is not padding, times `score.weight`. For them to
score what our contract says,
- the pad token is another than the one that a conversation ends with (`choose_pad`),
- the chat template writes what the contract builds, no sign more (`fit_template`),
- vLLM is told not to squash the score: `problem_type: regression`.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from jinja2 import TemplateError

from grm_ray.config.schema import Head
from grm_ray.data.chat import FILE as CONTRACT_FILE
from grm_ray.data.chat import Message, ScoringContract, rendering
from grm_ray.models.backbone import load_tokenizer, merged_weights, unwrap
from grm_ray.models.checkpoint import ADAPTER, HEAD_FILE, META_FILE, beside, of_its_own
from grm_ray.models.reward_model import RewardModel

SCORE = "score.weight"
NEW_PAD = "<|grm_ray_pad|>"
# Conversations, by what is special in them, whose tokens are compared; the last is the answer.
PROBES: dict[str, list[Message]] = {
    "one question": [
        {"role": "user", "content": "Which planet has the shortest year?"},
        {"role": "assistant", "content": "Mercury: 88 days."},
    ],
    "several turns": [
        {"role": "user", "content": "Name a prime above ninety."},
        {"role": "assistant", "content": "97."},
        {"role": "user", "content": "And the next one?\nIn words, please."},
        {"role": "assistant", "content": "One hundred and one.\n\nIt has a twin, 103."},
    ],
    "a system message": [
        {"role": "system", "content": "You answer in one word."},
        {"role": "user", "content": "Is glass a liquid?"},
        {"role": "assistant", "content": "No"},
    ],
    "letters beyond ASCII": [
        {"role": "user", "content": "Wie heißt 'Käse' auf Japanisch? 🧀"},
        {"role": "assistant", "content": "チーズ (chīzu) 🙂"},
    ],
    "an answer that begins with a line break": [
        {"role": "user", "content": "Say yes."},
        {"role": "assistant", "content": "\n\nYes."},
    ],
    "an answer that ends with white space": [
        {"role": "user", "content": "Say no."},
        {"role": "assistant", "content": "No. \n"},
    ],
}


def unfit(head: Head) -> str | None:
    """Why a head cannot be a `score.weight` of one row; None: it can."""
    if head.kind != "linear":
        return "its head is an MLP, but a sequence classifier has a single linear map"
    if head.bias:
        return "its head has a bias, but transformers' sequence classification has none"
    return None


def save_sequence_classification(
    model: RewardModel,
    head: Head,
    tokenizer: Any,
    contract: ScoringContract,
    folder: Path,
    card: Callable[[list[str]], str],
) -> list[str]:
    """Write `model` as a one-label classifier; returns where its chat template falls short.

    A head of several attributes becomes one map, the weighted sum of theirs, which is exact.

    Args:
        tokenizer: is changed: its pad token, its chat template and how it truncates.
        card: makes the model card from what this function returns.

    Returns:
        The `PROBES` that the exported template writes otherwise than the contract; where there are
        none, whoever templates a whole conversation gets the contract's tokens.

    Raises:
        ValueError: the head does not fit (`unfit`), or transformers has no such classifier.
    """
    wrong = unfit(head)
    if wrong is not None:
        raise ValueError(f"no sequence classifier can be made of this reward model: {wrong}")
    wanted = {name: _contract_ids(contract, tokenizer, probe) for name, probe in PROBES.items()}
    pad = choose_pad(tokenizer, {ids[-1] for ids in wanted.values() if ids})
    contract, differ = fit_template(tokenizer, contract, wanted)
    tokenizer.model_max_length = contract.max_length
    tokenizer.truncation_side = "left" if contract.truncation == "left" else "right"
    config = copy.deepcopy(unwrap(model.lm).config)
    config.get_text_config().pad_token_id = config.pad_token_id = pad
    config.num_labels, config.problem_type = 1, "regression"
    config.id2label, config.label2id = {0: "reward"}, {"reward": 0}
    weights = _classifier_weights(model, config)
    with beside(folder) as fresh:
        config.save_pretrained(fresh)
        save_torch_state_dict(
            {name: of_its_own(weight) for name, weight in weights.items()},
            fresh,
            metadata={"format": "pt"},
        )
        tokenizer.save_pretrained(fresh)
        contract.save(fresh)
        (fresh / "README.md").write_text(card(differ), encoding="utf-8")
    return differ


def save_adapter(source: Path, folder: Path, card: str) -> None:
    """Copy the adapter of a reward model of ours, with its head, contract and tokenizer.

    Raises:
        ValueError: `source` has no adapter beside its merged weights.
    """
    if not (source / ADAPTER).is_dir():
        raise ValueError(
            f"{source} has no {ADAPTER}/: all its weights were trained, or it was saved without"
        )
    with beside(folder) as fresh:
        shutil.copytree(source / ADAPTER, fresh, dirs_exist_ok=True)
        for name in (HEAD_FILE, META_FILE, CONTRACT_FILE):
            shutil.copy2(source / name, fresh / name)
        load_tokenizer(str(source)).save_pretrained(fresh)
        (fresh / "README.md").write_text(card, encoding="utf-8")


def choose_pad(tokenizer: Any, last_ids: set[int]) -> int:
    """Give `tokenizer` a pad token that no conversation ends with; its id.

    Its own, if it is none of `last_ids`; else the special token that is least likely to mean
    something (its name says so, or it is the unknown token); else a new one.
    """
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in last_ids:
        used = f"{tokenizer.chat_template} {tokenizer.bos_token} {tokenizer.eos_token}"
        free = [
            str(token)
            for number, token in sorted(tokenizer.added_tokens_decoder.items())
            if token.special and number not in last_ids and str(token) not in used
        ]
        hints = ("pad", "reserved", "unused", "endoftext", str(tokenizer.unk_token).lower())
        named = [token for hint in hints for token in free if hint in token.lower()]
        if named or free:
            tokenizer.pad_token = (named or free)[0]
        else:
            tokenizer.add_special_tokens({"pad_token": NEW_PAD})
    return int(tokenizer.pad_token_id)


def fit_template(
    tokenizer: Any, contract: ScoringContract, wanted: dict[str, list[int] | None]
) -> tuple[ScoringContract, list[str]]:
    """Give `tokenizer` the template whose tokens agree with the contract.

    Tried, in this order: the template as it is; in layout "answer", the same with what follows the
    answer replaced by the terminal token; in layout "template", the same behind one more BOS.

    Returns:
        The contract for the changed tokenizer, and the `PROBES` that still differ.
    """
    source = tokenizer.chat_template
    tried = {source: contract} if isinstance(source, str) else {}  # a dictionary: several by name
    text = _written(tokenizer, PROBES["one question"])
    if tried and text is not None and contract.terminal_token_id is not None:
        answer = PROBES["one question"][-1]["content"]
        ending = text[text.rfind(answer) + len(answer) :]
        terminal = tokenizer.convert_ids_to_tokens(contract.terminal_token_id)
        tried[_ending_in(source, ending, terminal)] = contract
    if tried and contract.special_tokens_twice and tokenizer.bos_token is not None:
        tried["{{ bos_token }}" + source] = replace(contract, special_tokens_twice=False)
    found = []
    for template, its_contract in tried.items():
        tokenizer.chat_template = template
        found.append((_differing(tokenizer, wanted), template, its_contract))
    if not found:
        return contract.rebound(tokenizer), _differing(tokenizer, wanted)
    differ, tokenizer.chat_template, contract = min(found, key=lambda entry: len(entry[0]))
    return contract.rebound(tokenizer), differ


def _ending_in(source: str, ending: str, terminal: str) -> str:
    """`source`, whose closed conversations end in `terminal` where they ended in `ending`."""
    old, new = (json.dumps(text, ensure_ascii=False) for text in (ending, terminal))
    kept = f"written[:written | length - {len(ending)}]" if ending else "written"
    # The line breaks are those that Jinja leaves out: after a tag, and at a template's end.
    return (
        "{% set written %}\n"
        + source.removesuffix("\n")
        + "{% endset %}{% if add_generation_prompt or not written.endswith("
        + f"{old}) %}}{{{{ written }}}}{{% else %}}{{{{ {kept} + {new} }}}}{{% endif %}}"
    )


def _differing(tokenizer: Any, wanted: dict[str, list[int] | None]) -> list[str]:
    differ = []
    for name, ids in wanted.items():
        if ids is not None:
            text = _written(tokenizer, PROBES[name])
            if text is None or tokenizer(text, add_special_tokens=False)["input_ids"] != ids:
                differ.append(name)
    return differ


def _written(tokenizer: Any, messages: Sequence[Message]) -> str | None:
    """What the chat template makes of a whole conversation; None: it refuses it."""
    try:
        with rendering():
            return str(tokenizer.apply_chat_template(list(messages), tokenize=False))
    except TemplateError:
        return None


def _contract_ids(
    contract: ScoringContract, tokenizer: Any, messages: Sequence[Message]
) -> list[int] | None:
    """The contract's tokens of a whole conversation; None: its template refuses it."""
    try:
        prompt, (answer,) = contract.tokens(tokenizer, messages[:-1], [messages[-1]["content"]])
    except TemplateError:
        return None
    return [*prompt, *answer]


def _classifier_weights(model: RewardModel, config: Any) -> dict[str, torch.Tensor]:
    """The backbone's weights under the classifier's names, and `score.weight`."""
    from transformers import AutoModelForSequenceClassification

    text, embedded = config.get_text_config(), unwrap(model.lm).get_input_embeddings().weight
    rows = max(text.vocab_size, text.pad_token_id + 1)  # a new pad token may need one more
    config.vocab_size = text.vocab_size = rows
    try:
        with torch.device("meta"):
            empty = AutoModelForSequenceClassification.from_config(config)
    except ValueError as error:
        raise ValueError(
            f"transformers has no sequence classifier for {config.model_type} ({error})"
        ) from None
    config.architectures = [type(empty).__name__]
    wanted = {name for name, _ in empty.named_parameters()} - {SCORE}
    weights = {}
    for name, weight in merged_weights(model.lm):
        if name in wanted:
            if weight.data_ptr() == embedded.data_ptr() and len(weight) < rows:
                weight = torch.cat([weight, weight.new_zeros(rows - len(weight), weight.shape[1])])
            weights[name] = weight
    if set(weights) != wanted:
        raise ValueError(
            f"{config.architectures[0]} needs weights that this model does not have: "
            f"{sorted(wanted - set(weights))}"
        )
    linear = model.head.layers[0]
    score_AH = linear.weight.detach()
    if model.head.weights:
        sum_A = score_AH.new_tensor(model.head.weights, dtype=torch.float64)
        score_AH = (sum_A @ score_AH.double())[None].float()
    weights[SCORE] = score_AH
    return weights

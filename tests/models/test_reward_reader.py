"""A reward model reads a policy's rows as it reads them alone, whoever's tokens they bring."""

import json

import numpy as np
import pyarrow as pa
import pytest
import torch
from transformers import AutoTokenizer

from grm_ray.config.schema import Head, Model
from grm_ray.data.chat import ScoringContract
from grm_ray.data.tables import ROLLOUTS
from grm_ray.models.backbone import load_causal_lm, load_tokenizer
from grm_ray.models.checkpoint import save_reward_model
from grm_ray.models.reward_model import RewardModel
from grm_ray.models.reward_reader import RewardReader
from grm_ray.models.scoring import score_rows
from tests.conftest import WORDS, build_model

ASKED = [WORDS[:5], WORDS[5:12], WORDS[3:6]]
ANSWERED = [WORDS[2:4], WORDS[:9], WORDS[20:21]]


def renamed(folder):
    """The model in `folder` with another tokenizer: other ids for the words, another template."""
    path = folder / "tokenizer.json"
    described = json.loads(path.read_text())
    vocabulary = described["model"]["vocab"]
    special = {token["content"] for token in described["added_tokens"]}
    words = sorted((w for w in vocabulary if w not in special), key=lambda w: w[::-1])
    ids = sorted(vocabulary[word] for word in words)
    vocabulary |= dict(zip(words, ids, strict=True))
    path.write_text(json.dumps(described))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("user", "human")
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(params=["the policy's tokenizer", "another"])
def saved(request, tmp_path, tiny_model):
    """`(folder of a reward model, its model, its contract, the policy's folder)`."""
    backbone = build_model(tmp_path / "backbone", seed=3)
    if request.param == "another":
        renamed(backbone)
    tokenizer = load_tokenizer(str(backbone))
    torch.manual_seed(0)
    model = RewardModel(load_causal_lm(Model(path=str(backbone), dtype="float32")), Head())
    torch.nn.init.normal_(model.head.layers[-1].weight)
    contract = ScoringContract.of(tokenizer, 128, "left")
    save_reward_model(model, Head(), tokenizer, contract, tmp_path / "saved", "# made for a test\n")
    return tmp_path / "saved", model, contract, tokenizer, tiny_model


def test_what_the_template_refuses_has_no_score_and_spoils_no_other(tmp_path, tiny_model):
    base = build_model(tmp_path / "base", seed=1)
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = (
        "{% if 'red' in messages[0]['content'] %}{{ raise_exception('no red') }}{% endif %}"
        + tokenizer.chat_template
    )
    tokenizer.save_pretrained(base)
    model = RewardModel(load_causal_lm(Model(path=str(base), dtype="float32")), Head(members=2))
    contract = ScoringContract.of(tokenizer, 128, "left")
    save_reward_model(model, Head(members=2), tokenizer, contract, tmp_path / "saved", "# test\n")
    texts = [("the cat", "sat"), ("red birds", "fly"), ("the cat", "saw rain")]
    rows = {
        "messages": [json.dumps([{"role": "user", "content": asked}]) for asked, _ in texts],
        "response": [said for _, said in texts],
    }
    reader = RewardReader(str(tmp_path / "saved"), "float32", None, 256)
    scores_BK = reader.member_scores(pa.table(rows))
    assert scores_BK.shape == (3, 2)
    assert np.isnan(scores_BK).all(axis=1).tolist() == [False, True, False]
    assert reader.score(pa.table(rows))[[0, 2]] == pytest.approx(scores_BK[[0, 2]].mean(axis=1))


def test_scores_are_those_of_the_model_alone(saved):
    folder, model, contract, tokenizer, policy_folder = saved
    policy = load_tokenizer(str(policy_folder))
    rows, alone = [], []
    for number, (asked, answered) in enumerate(zip(ASKED, ANSWERED, strict=True)):
        messages = [{"role": "user", "content": " ".join(asked)}]
        prompt = policy.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        said = " ".join(answered)
        end = [policy.eos_token_id] if number else []  # the first was cut
        rows.append(
            {
                "uid": str(number),
                "prompt": " ".join(asked),
                "messages": json.dumps(messages),
                "response": said,
                "prompt_tokens": prompt,
                "response_tokens": policy(said, add_special_tokens=False)["input_ids"] + end,
                "engine_logprobs": [],
                "finished": bool(number),
                "incarnation": 0,
                "version": 0,
            }
        )
        own_prompt, (own_answer,) = contract.tokens(tokenizer, messages, [said])
        alone.append((np.array(own_prompt), np.array(own_answer)))
    found = RewardReader(str(folder), "float32", str(policy_folder), 256).score(
        pa.Table.from_pylist(rows, schema=ROLLOUTS)
    )
    wanted = score_rows(model, alone, 256, "cpu")
    assert found == pytest.approx(wanted, abs=1e-5) and np.std(wanted) > 1e-3


def test_rows_that_do_not_fit_memory_at_once_are_read_in_smaller_passes(saved):
    folder, *_ = saved
    texts = {
        "messages": [json.dumps([{"role": "user", "content": " ".join(asked)}]) for asked in ASKED],
        "response": [" ".join(answered) for answered in ANSWERED],
    }
    undisturbed = RewardReader(str(folder), "float32", None, 256).member_scores(pa.table(texts))
    reader, passes = RewardReader(str(folder), "float32", None, 256), []

    def little_memory(_, inputs):
        passes.append(inputs[0].input_ids_T.numel())
        if passes[-1] > room:
            torch.empty(1 << 55, dtype=torch.uint8)

    reader.model.register_forward_pre_hook(little_memory)
    room = 64
    assert reader.member_scores(pa.table(texts)) == pytest.approx(undisturbed, abs=1e-5)
    assert passes[0] > room
    passes.clear()
    reader.member_scores(pa.table(texts))
    assert max(passes) <= room, "the smaller size is kept"
    room = 8
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        reader.member_scores(pa.table(texts))

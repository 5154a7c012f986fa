"""Sizes from a config alone are those of the real model, and so is what a pass keeps alive."""

import numpy as np
import pytest
import torch

from grm_ray.config.schema import Head, Lora, Model
from grm_ray.data.packing import pack
from grm_ray.models import footprint
from grm_ray.models.backbone import load_causal_lm
from grm_ray.models.footprint import Size, Unknown
from grm_ray.models.reward_model import RewardModel

LORA = Lora(rank=4, dropout=0.0)
WAYS = {
    "all": {},
    "lora": {"lora": LORA},
    "last_layer": {"lora": LORA.model_copy(update={"last_layers": 1})},
    "frozen": {"frozen": True},
}


def made(path, **how):
    model = Model(path=str(path), dtype="float32", **how)
    return footprint.build_reward_model(path, model, Head(), torch.float32)


@pytest.mark.parametrize("how", WAYS.values(), ids=WAYS)
def test_counts_are_those_of_the_loaded_model(tiny_model, how):
    loaded = load_causal_lm(Model(path=str(tiny_model), dtype="float32", **how))
    loaded.requires_grad_(False) if how.get("frozen") else None
    assert Size.of(made(tiny_model, **how)) == Size.of(RewardModel(loaded, Head()))


def test_nothing_is_held_in_memory(tiny_model):
    assert {p.device.type for p in made(tiny_model).parameters()} == {"meta"}


def test_a_pass_counts_what_a_real_one_keeps_alive(tiny_model):
    groups = [(np.array([1, 2]), [np.arange(3, 40), np.arange(3, 20)])]
    told = footprint.training_pass(made(tiny_model), groups, [0])
    real = RewardModel(load_causal_lm(Model(path=str(tiny_model), dtype="float32")), Head()).train()
    packed = pack(groups)
    with footprint._Alive(real) as alive:
        scores, logp = real(packed, [0])
        (scores.sum() + logp.sum()).backward()
    assert told.tokens == len(packed.input_ids_T)
    assert told.peak == pytest.approx(alive.peak, rel=0.001)


def test_what_takes_less_is_told_to_take_less(tiny_model):
    groups = footprint.groups_of(400, 400, 2)
    work = {
        name: footprint.training_pass(made(tiny_model, **how), groups, None)
        for name, how in (
            ("all", {}),
            ("recomputed", {"gradient_checkpointing": True}),
            ("last_layer", WAYS["last_layer"]),
        )
    }
    shorter = footprint.training_pass(made(tiny_model), footprint.groups_of(200, 200, 2), None)
    assert work["recomputed"].peak < work["all"].peak
    assert work["last_layer"].peak < work["all"].peak
    assert shorter.peak < work["all"].peak
    assert work["recomputed"].flops > work["all"].flops > work["last_layer"].flops
    assert footprint.scoring_pass(made(tiny_model), groups).peak < work["last_layer"].peak


def test_the_vocabulary_costs_a_chunk_and_no_more(tiny_model):
    """Twice the answer tokens beyond a chunk of 1,024: their logits are never there at once."""
    model = made(tiny_model, **WAYS["frozen"])

    def peak(tokens):
        packed = pack(footprint.groups_of(tokens, tokens, 1)).to("meta")

        def said():
            return [model(packed, [0])[1]]

        with torch.no_grad():
            return footprint._counted(model, said, tokens).peak

    chunk = 1024 * model.lm.config.vocab_size * 4
    without = footprint.scoring_pass(model, footprint.groups_of(4000, 4000, 1)).peak
    assert peak(4000) < without + 4 * chunk


@pytest.mark.parametrize(("tokens", "longest", "answers"), [(512, 256, 2), (7, 100, 4), (64, 9, 3)])
def test_groups_fill_a_micro_batch(tokens, longest, answers):
    groups = footprint.groups_of(tokens, longest, answers)
    total = sum(len(prompt) + sum(map(len, rows)) for prompt, rows in groups)
    assert tokens - 1 <= total <= tokens
    assert all(len(p) + len(a) <= longest for p, rows in groups for a in rows)
    assert max(len(rows) for _, rows in groups) <= answers


def test_thousands_of_tiny_answers_are_as_many_tokens_in_fewer():
    groups = footprint.groups_of(16_384, 4, 4)
    answers = [answer for _, rows in groups for answer in rows]
    assert len(answers) <= footprint.MOST_ANSWERS + 1
    assert sum(map(len, answers)) + len(groups) == 16_384


def test_a_model_that_is_not_here_is_said_to_be_unknown():
    with pytest.raises(Unknown, match="its config cannot be read offline"):
        footprint.build("nobody/has-this-model", Model(path="nobody/has-this-model"), torch.float32)

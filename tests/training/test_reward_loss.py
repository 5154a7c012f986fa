"""The loss of a step: packed and chunked as it is, it equals the plain two-sequence loss."""

import math

import numpy as np
import pytest
import torch

from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import PreferenceLoss
from grm_ray.config.schema import Head, Model
from grm_ray.models.backbone import load_causal_lm
from grm_ray.models.reward_model import RewardModel
from grm_ray.training.reward_loss import PairBatch, RewardLoss, gradient_ratio

NAN = math.nan


@pytest.fixture
def model(tiny_model):
    torch.manual_seed(3)
    lm = load_causal_lm(Model(path=str(tiny_model), dtype="float32"), str(tiny_model))
    return RewardModel(lm, Head())


def pairs(margin=NAN, smoothing=NAN, reference=None):
    """Three pairs; two share a start, and answers differ in length."""
    rng = np.random.default_rng(0)
    start = rng.integers(5, 300, 12)
    groups = []
    for prompt, good, bad in ((3, 9, 4), (7, 2, 11), (5, 6, 6)):
        head = np.concatenate([start, rng.integers(5, 300, prompt)])
        groups.append((head, (rng.integers(5, 300, good), rng.integers(5, 300, bad))))
    return PairBatch(groups, np.full(3, margin), np.full(3, smoothing), reference)


def plain(model, given, config):
    """Each conversation alone through transformers, the whole vocabulary at once."""
    model.lm.set_attn_implementation("sdpa")
    scores, sums = [], []
    for prompt, answers in given.groups:
        for answer in answers:
            ids = torch.tensor(np.concatenate([prompt, answer]))[None]
            out = model.lm(input_ids=ids, output_hidden_states=True)
            scores.append(model.head(out.hidden_states[-1][0, -1]))
            logp = out.logits[0].log_softmax(-1)[:-1].gather(1, ids[0, 1:, None])[:, 0]
            sums.append(logp[len(prompt) - 1 :].sum())
    model.lm.set_attn_implementation("grm_ray_packed")
    scores, sums = torch.stack(scores), torch.stack(sums)
    softplus = torch.nn.functional.softplus
    preference = softplus(scores[1::2] - scores[0::2]).mean()
    gap = sums[0::2] if config.regularizer == "sft" else sums[0::2] - sums[1::2]
    regularizer = softplus(-config.beta * gap).mean()
    return (1 - config.alpha) * preference + config.alpha * regularizer


@pytest.mark.parametrize("regularizer", ["sft", "dpo_noref"])
def test_gradients_are_those_of_the_plain_loss(model, regularizer):
    config = PreferenceLoss(regularizer=regularizer, alpha=0.3)
    given = pairs()
    loss = RewardLoss(config)
    ours = loss.shares(loss.pairs(model, given, "cpu"), (3, 3))
    ours.backward()
    mine = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    theirs = plain(model, given, config)
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        largest = parameter.grad.abs().max()
        assert (mine[name] - parameter.grad).abs().max() <= 1e-5 * largest, name


def test_micro_batches_add_up_to_the_step(model):
    loss = RewardLoss(PreferenceLoss(alpha=0.3))
    given = pairs()
    whole = loss.shares(loss.pairs(model, given, "cpu"), (3, 3))
    parts = [
        loss.shares(loss.pairs(model, given.take(rows), "cpu"), (3, 3)) for rows in ([0, 2], [1])
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), abs=1e-6)


def test_alpha_zero_is_plain_bradley_terry(model):
    given = pairs()
    bare = RewardLoss(PreferenceLoss(alpha=0.0, regularizer=None))
    with_name = RewardLoss(PreferenceLoss(alpha=0.0, regularizer="sft"))
    assert with_name.logprobs_of(3) is None  # the language head is not even asked
    a, b = (loss.shares(loss.pairs(model, given, "cpu"), (3, 3)) for loss in (bare, with_name))
    assert torch.equal(a, b)


def test_dpo_with_policy_as_reference_is_log_two(model):
    loss = RewardLoss(PreferenceLoss(regularizer="dpo", alpha=1.0))
    assert loss.needs_reference
    given = pairs()
    _, logp = model(_packed(given), range(6))
    given = pairs(reference=logp.detach().reshape(3, 2).numpy())
    values = loss.pairs(model, given, "cpu")
    assert torch.equal(values["regularizer"], torch.full((3,), math.log(2)))


def test_members_learn_each_from_the_pairs_that_it_drew(tiny_model):
    torch.manual_seed(3)
    lm = load_causal_lm(Model(path=str(tiny_model), dtype="float32"), str(tiny_model))
    several = RewardModel(lm, Head(members=3))
    torch.nn.init.normal_(several.head.layers[0].weight, std=0.1)
    given = pairs()
    draws = np.array([[1, 0, 2], [0, 0, 1], [3, 0, 1]], np.float32)
    loss = RewardLoss(PreferenceLoss(alpha=0.0, centering=0.1))
    drawn = PairBatch(given.groups, given.margin_B, given.smoothing_B, None, draws)
    values = loss.pairs(several, drawn, "cpu")
    values["preference"].sum().backward()
    gradient = several.head.layers[0].weight.grad.clone()
    assert gradient[1].abs().max() == 0 < gradient[0].abs().max()  # it drew none of them
    # A member is told what it would be told alone, as often as it drew the pair.
    scores = several(_packed(given))[0].detach()
    alone_BK = torch.stack(
        [loss.of_scores(scores[:, k], None, given)["preference"] for k in range(3)], dim=1
    )
    expected_B = (torch.from_numpy(draws) * alone_BK).mean(1)
    torch.testing.assert_close(values["preference"].detach(), expected_B)
    margin = scores.mean(1)[0::2] - scores.mean(1)[1::2]
    torch.testing.assert_close(values["margin"], margin)


def test_a_row_s_own_smoothing_beats_the_config_s(model):
    values = {
        own: RewardLoss(PreferenceLoss(alpha=0.0, label_smoothing=0.1)).pairs(
            model, pairs(smoothing=own), "cpu"
        )["preference"]
        for own in (NAN, 0.1, 0.3)
    }
    assert torch.equal(values[NAN], values[0.1])
    assert not torch.allclose(values[NAN], values[0.3])


def test_penalties_are_added_to_the_preference_loss(model):
    given = pairs()
    with torch.no_grad():
        model.head.layers[0].weight.mul_(50)
    scores, _ = model(_packed(given))
    plain_loss = RewardLoss(PreferenceLoss(alpha=0.0)).pairs(model, given, "cpu")
    both = RewardLoss(PreferenceLoss(alpha=0.0, centering=0.01, score_l2=0.02)).pairs(
        model, given, "cpu"
    )
    added = 0.01 * (scores[0::2] + scores[1::2]) ** 2 + 0.02 * (
        scores[0::2] ** 2 + scores[1::2] ** 2
    )
    assert torch.allclose(both["preference"], plain_loss["preference"] + added, atol=1e-6)


def test_margins_are_asked_for_by_the_losses_that_need_them():
    assert RewardLoss(PreferenceLoss(preference="margin")).needs_margin
    assert RewardLoss(PreferenceLoss(normalize_by="margins")).needs_margin
    assert not RewardLoss(PreferenceLoss()).needs_margin


def test_rejected_log_probs_are_made_for_a_loss_that_reads_them():
    assert list(RewardLoss(PreferenceLoss()).logprobs_of(2)) == [0, 2]
    assert list(RewardLoss(PreferenceLoss(regularizer="dpo_noref")).logprobs_of(2)) == [0, 1, 2, 3]


def asks_for_too_much(chosen_B, rejected_B, temperature):
    return chosen_B


def test_a_loss_that_asks_for_what_nobody_has_is_refused():
    own = f"{__name__}:asks_for_too_much"
    with pytest.raises(ConfigError, match="takes temperature"):
        RewardLoss(PreferenceLoss(preference=own))


def test_the_gradient_ratio_is_that_of_both_losses(model):
    given = pairs()
    config = PreferenceLoss(alpha=0.3)
    found = gradient_ratio(RewardLoss(config), model, given, config.alpha, "cpu")
    half = gradient_ratio(RewardLoss(config), model, given, 0.15, "cpu")
    assert found > 0 and half == pytest.approx(found * (0.15 / 0.85) / (0.3 / 0.7), rel=1e-4)


def _packed(given):
    from grm_ray.data.packing import pack

    return pack(given.groups)

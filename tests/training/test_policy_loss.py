"""From rewards to the update's gradient: the same whatever the split, and what the papers say."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from grm_ray.config.policy import Kl, Ppo
from grm_ray.config.ppo import Rollout
from grm_ray.config.schema import Head, Lora, Model
from grm_ray.data.packing import pack
from grm_ray.models.backbone import load_causal_lm
from grm_ray.models.policy import Policy
from grm_ray.training.policy_loss import Before, PolicyLoss, Targets

LONGEST = 9
ROLLOUT = Rollout(max_new_tokens=LONGEST)
LENGTHS = [3, 1, 5, 2, 4, 9]
PROMPTS = torch.tensor([0, 0, 1, 1, 1, 0])
ESTIMATORS = ["gae", "rloo", "grpo", "dr_grpo", "reinforce_pp", "reinforce_pp_baseline"]


def config(**changes):
    if changes.get("estimator", "gae") == "gae":
        changes.setdefault("value_coefficient", 0.5)
    return Ppo(**{"clip": 0.1, **changes})


def offsets(lengths):
    return torch.tensor([0, *itertools.accumulate(lengths)])


def rows():
    """Rewards, and answers' tokens before the update."""
    generator = torch.Generator().manual_seed(0)
    total = sum(LENGTHS)
    logp, values = (torch.randn(total, generator=generator) for _ in range(2))
    ref = logp + 0.3 * torch.randn(total, generator=generator)
    rewards = torch.randn(len(LENGTHS), generator=generator)
    engine = logp + 0.5 * torch.randn(total, generator=generator)
    return rewards, Before(logp, ref, values, engine, offsets(LENGTHS))


def pick(before, chosen):
    """Token numbers of some rows, and their offsets."""
    starts = before.offsets_B1
    at = torch.cat([torch.arange(starts[i], starts[i + 1]) for i in chosen] or [torch.zeros(0)])
    return at.long(), offsets([LENGTHS[i] for i in chosen])


def alone(numbers):
    return [float(x) for x in numbers]


def targets_of(loss, coefficient=0.2):
    rewards, before = rows()
    taken = loss.row_rewards(rewards, loss.row_penalties(before), PROMPTS, coefficient)
    return loss.prepare(taken, before, coefficient, alone)


def gradient(loss, targets, micro_batches, move=0.15, policy_learns=True):
    """Gradient on every token's log-prob, value and entropy, and the figures, of one update."""
    total = len(targets.before.logp_T)
    generator = torch.Generator().manual_seed(1)
    logp = (targets.before.logp_T + move * torch.randn(total, generator=generator)).clone()
    leaves = [logp, torch.randn(total, generator=generator), torch.ones(total)]
    for leaf in leaves:
        leaf.requires_grad_()
    figures = dict.fromkeys(loss.figures, 0.0)
    for chosen in micro_batches:
        at, starts = pick(targets.before, chosen)
        share, found = loss(
            leaves[0][at],
            leaves[1][at],
            leaves[2][at] if loss.wants_entropy else None,
            targets.of(at, starts, torch.device("cpu")),
            tokens=float(total),
            rows=float(len(LENGTHS)),
            policy_learns=policy_learns,
        )
        share.backward()
        assert set(found) == set(figures)
        for name, value in found.items():
            figures[name] += value
    return [x.grad if x.grad is not None else torch.zeros_like(x) for x in leaves], figures


VARIANTS = [
    *({"estimator": name} for name in ESTIMATORS),
    {"estimator": "grpo", "clip_high": 0.28, "dual_clip": 3.0},
    {"estimator": "rloo", "normalize_by": "rows", "entropy_coefficient": 0.01},
    {"estimator": "gae", "ratio": "sequence"},
    {"estimator": "gae", "importance": "token"},
    {"estimator": "grpo", "importance": "sequence"},
    *({"kl": Kl(place="loss", estimator=kind)} for kind in ("k1", "k2", "k3")),
    {"estimator": "rloo", "kl": Kl(place="loss", estimator="sqrt_chi_squared")},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@given(order=st.permutations(range(len(LENGTHS))), cuts=st.sets(st.integers(1, 5)))
@settings(max_examples=10, deadline=None)
def test_the_gradient_does_not_depend_on_the_split(changes, order, cuts):
    loss = PolicyLoss(config(**changes), ROLLOUT)
    targets = targets_of(loss)
    whole, figures = gradient(loss, targets, [list(range(len(LENGTHS)))])
    edges = [0, *sorted(cuts), len(LENGTHS)]
    parts = [order[a:b] for a, b in itertools.pairwise(edges)]
    split, again = gradient(loss, targets, parts)
    for one, other in zip(whole, split, strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-5)
    assert figures == pytest.approx(again, abs=1e-5)
    assert any(float(x.abs().max()) > 0 for x in whole)


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_ranks_that_share_the_rows_find_the_same_targets(changes):
    loss = PolicyLoss(config(**changes), ROLLOUT)
    expected = targets_of(loss)
    rewards, before = rows()
    taken = loss.row_rewards(rewards, loss.row_penalties(before), PROMPTS, 0.2)
    shares = [[0, 3, 4], [1], [2, 5], []]

    def of_rank(share, over_ranks):
        at, starts = pick(before, share)
        mine = Targets(before, *[before.logp_T] * 3, 0.0).of(at, starts, torch.device("cpu"))
        return loss.prepare(taken[share], mine.before, 0.2, over_ranks)

    # The first pass collects what the ranks would sum, call by call.
    asked = []
    for share in shares:
        calls = []
        of_rank(share, lambda numbers, calls=calls: calls.append(alone(numbers)) or alone(numbers))
        asked.append(calls)
    sums = [[sum(x) for x in zip(*calls, strict=True)] for calls in zip(*asked, strict=True)]
    for share in shares:
        answers = iter(sums)
        mine = of_rank(share, lambda _, answers=answers: next(answers))
        at, _ = pick(before, share)
        torch.testing.assert_close(mine.advantages_T, expected.advantages_T[at])
        torch.testing.assert_close(mine.returns_T, expected.returns_T[at])
        torch.testing.assert_close(mine.weights_T, expected.weights_T[at])
        assert mine.penalty == pytest.approx(expected.penalty)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_without_a_penalty_advantages_are_those_of_the_papers(name):
    loss = PolicyLoss(
        config(estimator=name, whiten_advantages=False, **({"lam": 1.0} if name == "gae" else {})),
        ROLLOUT,
    )
    rewards, before = rows()
    targets = targets_of(loss, coefficient=0.0)
    for i, prompt in enumerate(PROMPTS):
        group = rewards[prompt == PROMPTS]
        others = (group.sum() - rewards[i]) / (len(group) - 1)
        at, _ = pick(before, [i])
        expected = {
            "gae": rewards[i] - before.values_T[at],  # lambda 1: the return minus the value
            "rloo": rewards[i] - others,
            "grpo": (rewards[i] - group.mean()) / (group.std() + 1e-4),
            "dr_grpo": rewards[i] - group.mean(),
            "reinforce_pp": rewards[i],
            "reinforce_pp_baseline": rewards[i] - group.mean(),
        }[name]
        torch.testing.assert_close(targets.advantages_T[at], torch.zeros(len(at)) + expected)


def test_a_penalty_in_the_reward_is_the_same_for_a_row_whether_spread_or_taken_at_once():
    by_row = PolicyLoss(config(estimator="rloo"), ROLLOUT)
    rewards, before = rows()
    penalties = by_row.row_penalties(before)
    taken = by_row.row_rewards(rewards, penalties, PROMPTS, 0.2)
    kl = torch.stack(
        [(before.logp_T - before.ref_logp_T)[pick(before, [i])[0]].sum() for i in range(6)]
    )
    torch.testing.assert_close(penalties, kl)
    final = rewards - 0.2 * kl
    assert float(taken[2]) == pytest.approx(float(final[2] - final[3:5].mean()))
    # Spread over the tokens, the first token's return has all of it.
    spread = PolicyLoss(config(estimator="reinforce_pp", whiten_advantages=False), ROLLOUT)
    targets = spread.prepare(rewards, before, 0.2, alone)
    torch.testing.assert_close(targets.advantages_T[before.offsets_B1[:-1]], final)


def test_what_older_weights_wrote_is_weighed_up_to_the_cap():
    for staleness, named, level in ((1, None, "token"), (0, "sequence", "sequence")):
        rollout = Rollout(max_new_tokens=LONGEST, staleness=staleness)
        loss = PolicyLoss(config(estimator="rloo", importance=named), rollout)
        targets = targets_of(loss)
        (on_logp, _, _), figures = gradient(loss, targets, [list(range(6))], move=0.0)
        before = targets.before
        ratios = (before.logp_T - before.engine_logp_T).exp()
        if level == "sequence":
            ratios = torch.cat(
                [
                    torch.full((n,), float(ratios[pick(before, [i])[0]].prod()))
                    for i, n in enumerate(LENGTHS)
                ]
            )
        weights = ratios.clamp_max(2.0)
        assert bool((ratios > 2).any())
        torch.testing.assert_close(on_logp, -targets.advantages_T * weights / 24)
        assert figures["policy/importance"] == pytest.approx(float(weights.mean()), rel=1e-5)
    fresh = PolicyLoss(config(estimator="rloo"), ROLLOUT)
    assert (
        bool((targets_of(fresh).weights_T == 1).all()) and "policy/importance" not in fresh.figures
    )


def test_rows_and_constant_weigh_a_token_as_they_say():
    for by, weights in (
        ("tokens", torch.full((24,), 1 / 24)),
        ("rows", torch.cat([torch.full((n,), 1 / n / 6) for n in LENGTHS])),
        ("constant", torch.full((24,), 1 / 6 / LONGEST)),
    ):
        loss = PolicyLoss(config(estimator="rloo", normalize_by=by), ROLLOUT)
        targets = targets_of(loss)
        (on_logp, _, _), _ = gradient(loss, targets, [list(range(6))], move=0.0)
        torch.testing.assert_close(on_logp, -targets.advantages_T * weights)


def test_defaults_follow_the_estimators_papers():
    def weight(**changes):
        loss = PolicyLoss(config(**changes), ROLLOUT)
        targets = targets_of(loss, coefficient=0.0)
        (on_logp, _, _), _ = gradient(loss, targets, [list(range(6))], move=0.0)
        return (on_logp / -targets.advantages_T)[[0, 3]].tolist()  # rows of 3 tokens and of 1

    assert weight(estimator="rloo") == pytest.approx([1 / 24, 1 / 24])
    assert weight(estimator="grpo") == pytest.approx([1 / 18, 1 / 6])
    assert weight(estimator="dr_grpo") == pytest.approx([1 / 54, 1 / 54])
    assert weight(estimator="rloo", ratio="sequence") == pytest.approx([1 / 18, 1 / 6])


def test_the_penalty_is_where_the_papers_have_it():
    places = {name: config(estimator=name).penalty_place for name in ESTIMATORS}
    assert [name for name, place in places.items() if place == "loss"] == ["grpo", "dr_grpo"]
    assert config(kl=Kl(estimator="sqrt_chi_squared")).penalty_place == "loss"
    assert config(estimator="grpo", kl=Kl(place="reward")).penalty_place == "reward"
    # In the loss, it does not change what a group is compared by.
    loss = PolicyLoss(config(estimator="grpo"), ROLLOUT)
    assert not loss.row_penalties(rows()[1]).any() and targets_of(loss).penalty == 0.2


def test_chi_squared_has_the_gradient_of_the_root_over_the_whole_batch():
    changes = {"estimator": "rloo", "kl": Kl(place="loss", estimator="sqrt_chi_squared")}
    loss = PolicyLoss(config(**changes), ROLLOUT)
    _, before = rows()
    zeros = torch.zeros(24)
    targets = loss.prepare(torch.zeros(6), before, 0.7, alone)
    assert torch.equal(targets.advantages_T, zeros)
    (on_logp, _, _), figures = gradient(loss, targets, [[0, 1, 2], [3, 4, 5]], move=0.0)
    logp = before.logp_T.clone().requires_grad_()
    ratios = torch.stack([(logp - before.ref_logp_T)[pick(before, [i])[0]].sum() for i in range(6)])
    chi = (ratios.exp() + (-ratios).exp() - 2).mean()
    (0.7 * chi.sqrt()).backward()
    torch.testing.assert_close(on_logp, logp.grad)
    assert figures["policy/chi_squared"] == pytest.approx(chi.item(), rel=1e-4)
    # The next minibatch's slope is that of the root at what this one found.
    after = loss.follow(targets, {"policy/chi_squared": 4.0}, alone)
    assert after.slope == pytest.approx(0.25) and after.penalty == targets.penalty == 0.7


def test_while_the_critic_warms_up_the_policy_gets_no_gradient():
    loss = PolicyLoss(config(entropy_coefficient=0.1, kl=Kl(place="loss")), ROLLOUT)
    (on_logp, on_values, on_entropy), _ = gradient(
        loss, targets_of(loss), [list(range(6))], policy_learns=False
    )
    assert not on_logp.any() and not on_entropy.any() and on_values.any()


def test_without_a_critic_values_get_no_gradient_and_entropy_is_pushed_up():
    loss = PolicyLoss(config(estimator="grpo", entropy_coefficient=0.1), ROLLOUT)
    (_, on_values, on_entropy), figures = gradient(loss, targets_of(loss), [list(range(6))])
    assert not on_values.any() and bool((on_entropy < 0).all())
    assert figures["policy/full_entropy"] == pytest.approx(1.0)
    assert "loss/value" not in figures


def test_one_answer_has_nothing_to_be_compared_with():
    loss = PolicyLoss(config(estimator="rloo"), ROLLOUT)
    with pytest.raises(ValueError, match="only answer"):
        loss.row_rewards(torch.zeros(2), torch.zeros(2), torch.tensor([0, 1]), 0.1)


@pytest.mark.parametrize(("name", "lora"), [("gae", True), ("grpo", False)])
def test_a_real_models_gradient_does_not_depend_on_the_split(tiny_model, lora, name):
    torch.manual_seed(0)
    adapter = Lora(rank=4, dropout=0.0) if lora else None
    lm = load_causal_lm(Model(path=str(tiny_model), dtype="float32", lora=adapter))
    policy = Policy(lm, Head()).train()
    with torch.no_grad():  # away from where the critic is 0, and adapter and reference are equal
        for parameter in policy.parameters():
            if parameter.requires_grad:
                parameter.add_(0.02 * torch.randn_like(parameter))
    prompts = [torch.randint(3, 300, (5,)).numpy(), torch.randint(3, 300, (8,)).numpy()]
    answers = [torch.randint(3, 300, (n,)).numpy() for n in LENGTHS]

    def packed(chosen):
        groups = {}
        for i in chosen:
            groups.setdefault(int(PROMPTS[i]), []).append(i)
        order = [i for group in groups.values() for i in group]
        made = [(prompts[p], [answers[i] for i in group]) for p, group in groups.items()]
        return pack(made), order

    loss = PolicyLoss(config(estimator=name, entropy_coefficient=0.01), ROLLOUT)
    whole, order = packed(range(6))
    with torch.no_grad():
        said = policy(whole, with_reference=True)
    ref = said.ref_logp_N
    assert not torch.allclose(said.logp_N, ref)
    where = torch.argsort(torch.cat([pick(rows()[1], [i])[0] for i in order]))
    flat = (said.logp_N[where], ref[where], said.values_N[where], said.logp_N[where])
    before = Before(*flat, offsets(LENGTHS))
    taken = loss.row_rewards(rows()[0], loss.row_penalties(before), PROMPTS, 0.1)
    targets = loss.prepare(taken, before, 0.1, alone)

    def gradients(parts):
        policy.zero_grad(set_to_none=True)
        for part in parts:
            batch, order = packed(part)
            said = policy(batch, with_entropy=True)
            wanted = targets.of(*pick(before, order), torch.device("cpu"))
            loss(*said[:3], wanted, float(sum(LENGTHS)), 6.0)[0].backward()
        return [p.grad.clone() for p in policy.parameters() if p.grad is not None]

    for parts in ([[0], [1], [2], [3], [4], [5]], [[5, 0], [3, 1, 2], [4]]):
        for one, other in zip(gradients([range(6)]), gradients(parts), strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_second_model_may_be_the_reference_and_never_learns(tiny_model):
    own = load_causal_lm(Model(path=str(tiny_model), dtype="float32", lora=Lora(rank=4)))
    other = load_causal_lm(Model(path=str(tiny_model), dtype="float32"))
    with torch.no_grad():
        other.model.embed_tokens.weight.mul_(1.5)
    policy = Policy(own, Head(), other)
    batch = pack([(torch.arange(3, 8).numpy(), [torch.arange(9, 13).numpy()])])
    said = policy(batch, with_reference=True)
    assert not torch.allclose(said.logp_N, said.ref_logp_N) and not said.ref_logp_N.requires_grad
    assert not any(p.requires_grad for p in policy.reference.parameters())
    # With an adapter and no other model there is no second copy of the backbone.
    assert Policy(own, Head()).reference is None


@pytest.mark.parametrize("lora", [False, True])
def test_a_reference_may_follow_the_policy(tiny_model, lora):
    torch.manual_seed(0)
    adapter = Lora(rank=4, dropout=0.0) if lora else None
    policy = Policy(
        load_causal_lm(Model(path=str(tiny_model), dtype="float32", lora=adapter)), Head(), ema=0.75
    )
    assert policy.reference is None
    batch = pack([(torch.arange(3, 8).numpy(), [torch.arange(9, 13).numpy()])])
    start = {n: p.detach().clone() for n, p in policy.lm.named_parameters() if p.requires_grad}
    said = policy(batch, with_reference=True)
    torch.testing.assert_close(said.ref_logp_N, said.logp_N)
    with torch.no_grad():
        for parameter in policy.lm.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    moved = {n: p.detach().clone() for n, p in policy.lm.named_parameters() if p.requires_grad}
    policy.follow()
    said = policy(batch, with_reference=True)
    after = dict(policy.lm.named_parameters())
    with torch.no_grad():
        assert all(torch.equal(after[name], weight) for name, weight in moved.items())
        for name, weight in start.items():
            after[name].copy_(0.75 * weight + 0.25 * moved[name])
    expected = policy(batch).logp_N
    torch.testing.assert_close(said.ref_logp_N, expected.detach())
    assert not torch.allclose(said.ref_logp_N, said.logp_N)

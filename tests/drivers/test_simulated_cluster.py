"""The real driver loop over clusters on paper, where hundreds of workers die and some crawl."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.parts.simulated_cluster import Speeds
from benchmarks.parts.simulated_run import run
from grm_ray.drivers.ppo.ahead import Ahead
from grm_ray.drivers.ppo.step import Gathering


@settings(max_examples=12, deadline=None)
@given(
    engines=st.integers(1, 9),
    scorers=st.integers(1, 5),
    staleness=st.integers(0, 2),
    seed=st.integers(0, 10**6),
    deaths=st.sampled_from([0.0, 5.0, 40.0]),
    machines=st.sampled_from([0.0, 0.5]),
)
def test_every_row_is_learned_from_once_whoever_dies(
    engines, scorers, staleness, seed, deaths, machines
):
    """`run` itself compares the ledger with what was asked for and what was learned from."""
    speeds = Speeds(deaths_per_hour=deaths, restart_s=20.0, mean_length=60.0, machines=machines)
    found = run(engines, scorers, speeds, 3, 8, staleness, seed)
    assert found["replaced"] <= found["deaths"]
    assert found["rows"] == 3 * 4 * max(2, engines * 2)


def test_workers_die_in_the_simulation():
    found = run(8, 4, Speeds(deaths_per_hour=40.0, restart_s=20.0), 3, 8)
    assert found["deaths"] > 5 and found["replaced"] > 5 and found["retries"] > 0


@pytest.mark.parametrize("staleness", [0, 1])
def test_rows_that_go_with_a_machine_are_made_again_alone(staleness, monkeypatch):
    """Scorers are so slow that many batches wait for them when an engine's machine goes."""
    again = []

    def counted(gathering, batch, make_again=Gathering._make_again):
        again.append(len(gathering.step.rollouts[batch]))
        make_again(gathering, batch)

    monkeypatch.setattr(Gathering, "_make_again", counted)
    speeds = Speeds(deaths_per_hour=60.0, restart_s=20.0, score_tokens=1_000.0, machines=1.0)
    found = run(8, 2, speeds, 4, 16, staleness)
    assert 0 < sum(again) < found["rows"]


def test_one_scorer_in_four_that_is_ten_times_slower_costs_little():
    """Scorers have as much to do as they can: without the slow one 4 / 3 were the least."""
    plain = run(8, 4, Speeds(score_tokens=2_000.0), 4, 16, 0)
    slow = run(8, 4, Speeds(score_tokens=2_000.0, slow=0.25), 4, 16, 0)
    assert slow["hedged"] > 0
    assert slow["simulated_s"] < 1.3 * plain["simulated_s"]


def test_running_ahead_and_streaming_keep_the_learner_busier_than_barriers():
    found = run(16, 2, Speeds(), 6, 32, 1)
    assert found["learner_busy"] > 1.3 * found["learner_busy_barrier"]


@pytest.mark.parametrize("staleness", [0, 1, 3])
def test_without_deaths_nothing_is_done_twice(staleness):
    found = run(4, 2, Speeds(), 4, 8, staleness)
    assert found["deaths"] == found["replaced"] == found["retries"] == 0


@pytest.mark.parametrize("when", [30.0, 55.0, 90.0])
def test_a_machine_with_every_engine_and_scorer_goes_and_the_run_does_not(when):
    found = run(8, 6, Speeds(restart_s=20.0, all_die_s=when), 3, 8)
    assert found["deaths"] == 14 and found["replaced"] >= 8


@pytest.mark.parametrize(("engines", "staleness", "seed"), [(4, 1, 0), (8, 1, 1), (8, 2, 2)])
def test_engines_get_weights_only_when_nobody_writes(engines, staleness, seed):
    """`SimulatedCluster.send_weights` looks; hedged work makes two engines write the same rows."""
    found = run(engines, 2, Speeds(), 6, 16, staleness, seed)
    assert found["hedged"] > 0


@pytest.mark.parametrize("staleness", [2, 3])
def test_held_out_prompts_are_answered_by_the_newest_weights(staleness, monkeypatch):
    seen = []

    def settled(ahead, step, updated=Ahead.updated):
        updated(ahead, step)
        ahead.settle()
        seen.append((step, ahead.version.step))

    monkeypatch.setattr(Ahead, "updated", settled)
    run(4, 2, Speeds(learn_tokens=25_000.0, evaluate_tokens=40_000.0), 8, 16, staleness)
    assert seen == [(step, step) for step in range(1, 9)]

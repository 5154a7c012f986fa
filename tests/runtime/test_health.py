"""The state machine of a worker, and how long it may be silent."""

import math

import pytest

from grm_ray.runtime.health import ALIVE, SERVES, Patience, Sign, State, after


def path(*signs, start=State.RESTARTING):
    for sign in signs:
        start = after(start, sign)
    return start


def test_the_life_of_a_worker():
    assert path(Sign.READY) is State.STALE
    assert path(Sign.READY, Sign.CURRENT) is State.HEALTHY
    assert path(Sign.READY, Sign.CURRENT, Sign.SILENT) is State.SUSPECT
    assert path(Sign.READY, Sign.CURRENT, Sign.SILENT, Sign.HEARD) is State.HEALTHY
    assert path(Sign.READY, Sign.CURRENT, Sign.DIED, Sign.SPAWNED) is State.RESTARTING
    assert path(Sign.READY, Sign.CURRENT, Sign.DIED, Sign.GIVEN_UP) is State.RETIRED


@pytest.mark.parametrize("state", ALIVE)
def test_whoever_lives_may_die(state):
    assert after(state, Sign.DIED) is State.DEAD


def test_nobody_serves_before_it_is_current():
    """From a spawn every way to a state that serves goes through READY, then CURRENT."""
    assert State.STALE not in SERVES and State.RESTARTING not in SERVES
    for sign in Sign:
        if sign not in (Sign.READY, Sign.DIED):
            with pytest.raises(ValueError, match="restarting"):
                after(State.RESTARTING, sign)
        if sign not in (Sign.CURRENT, Sign.DIED):
            with pytest.raises(ValueError, match="stale"):
                after(State.STALE, sign)


@pytest.mark.parametrize("sign", [sign for sign in Sign if sign is not Sign.SPAWNED])
def test_a_retired_place_waits_for_a_new_worker(sign):
    with pytest.raises(ValueError, match="retired"):
        after(path(Sign.DIED, Sign.GIVEN_UP), sign)
    assert path(Sign.DIED, Sign.GIVEN_UP, Sign.SPAWNED) is State.RESTARTING


def warm(patience, slots):
    for slot in range(slots):
        patience.note(slot, 1000.0)
    return patience


def test_nothing_is_too_long_while_nothing_is_known():
    assert Patience().allowed_s == math.inf
    assert warm(Patience(), 3).allowed_s == math.inf


def test_a_minority_of_slow_workers_does_not_move_what_is_allowed():
    patience = warm(Patience(factor=2.0, at_least_s=0.5), 4)
    for slot in range(4):
        for seconds in (0.5, 1.0, 0.25):
            patience.note(slot, seconds * (10 if slot == 3 else 1))
    assert patience.allowed_s == 2.0
    patience.forget(0), patience.forget(1), patience.forget(2)
    assert patience.allowed_s == 20.0


def test_old_silences_are_forgotten_and_short_ones_have_a_floor():
    patience = warm(Patience(factor=2.0, at_least_s=1.5, recent=3), 1)
    patience.note(0, 60.0)
    assert patience.allowed_s == 120.0
    for _ in range(3):
        patience.note(0, 0.1)
    assert patience.allowed_s == 1.5

"""A sample of the damaged inputs that `benchmarks/fuzz.py` tries by the ten thousand."""

import pytest

from tests.fuzzing.harness import Broken, Kind, judged, outcome
from tests.fuzzing.kinds import CASES, kind_of

SEED = 1
SAMPLE = {"config": 60, "data": 160, "http": 100, "model": 25, "report": 50}


@pytest.mark.parametrize("kind", sorted(CASES))
def test_what_is_damaged_is_used_or_refused_in_one_clear_message(kind, tmp_path):
    made = kind_of(kind, tmp_path)
    found = [outcome(made, kind, SEED, case, 60) for case in range(SAMPLE[kind])]
    wrong = [
        f"--seed {SEED} --kind {kind} --case {n}: {why}" for n, (_, why) in enumerate(found) if why
    ]
    assert not wrong, "\n".join(wrong[:5])
    # Were everything refused at the door, nothing behind it would be tried.
    assert {"refused", "accepted"} <= {what for what, _ in found}


def test_a_case_is_the_same_whenever_it_is_tried(tmp_path):
    class Drawn(Kind):
        def attempt(self, rng):
            return str(rng.random())

    made = Drawn(tmp_path)
    one, again, other = (outcome(made, "x", 3, case)[0] for case in (5, 5, 6))
    assert one == again != other


def missing():
    return {}["key"]


def unclear():
    raise Broken("no message")


def endless():
    while True:
        pass


@pytest.mark.parametrize(
    ("does", "what"), [(missing, "exception"), (unclear, "wrong"), (endless, "hang")]
)
def test_what_goes_wrong_is_told(does, what, tmp_path):
    class Bad(Kind):
        def attempt(self, rng):
            return does()

    found, why = outcome(Bad(tmp_path), "x", 0, 0, seconds=0.2)
    assert found == what and why


@pytest.mark.parametrize(
    ("code", "errors"),
    [
        (0, "a warning"),
        (1, "error: x"),
        (2, ""),
        (2, "error: "),
        (2, "warning\nerror: x"),
        (2, "error: Traceback (most recent call last)"),
        (2, "error: a\x1b[31m"),
        (2, "error: " + "x" * 5000),
    ],
)
def test_another_end_than_one_clear_message_is_a_failure(code, errors):
    assert judged(0, "") == "accepted"
    assert judged(2, "error: x\n") == "refused"
    with pytest.raises(Broken):
        judged(code, errors)

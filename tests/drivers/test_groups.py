"""What a rank's failure is taken for, on real actors."""

import os

import pytest
import ray

from grm_ray.drivers.groups import Group, InputLost, RankDied, RankFailed


@ray.remote(num_cpus=0)
class Rank:
    def read(self, rows):
        return len(rows)

    def lack(self):
        """As Ray has it where a call's argument cannot be fetched."""
        raise ray.exceptions.ObjectLostError("00" * 28, None, "")

    def fail(self):
        raise RuntimeError("a bug")

    def die(self):
        os._exit(1)


@pytest.fixture
def group(small_cluster):
    made = Group(lambda rank: Rank.remote(), 2, 30)
    yield made
    made.kill()


def test_results_come_in_the_order_of_ranks(group):
    assert group.call("read", [1, 2]) == [2, 2]


def test_rows_that_are_lost_are_no_fault_of_the_rank(group):
    with pytest.raises(InputLost, match="lost with the machine"):
        group.gather([group.ranks[0].lack.remote()])
    assert group.call("read", [1]) == [1, 1]


def test_a_death_and_a_bug_are_told_apart(group):
    with pytest.raises(RankFailed, match="a bug") as bug:
        group.gather([group.ranks[0].fail.remote()])
    assert not isinstance(bug.value, RankDied)
    with pytest.raises(RankDied, match="died"):
        group.gather([group.ranks[0].die.remote(), group.ranks[1].read.remote([])])

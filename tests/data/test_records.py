"""A record's names tell what differs and nothing else."""

from grm_ray.data.records import Contest, Pair, Rated

ASKED = (("user", "Why?"),)


def test_a_pairs_key_is_blind_to_the_label_and_its_digest_is_not():
    pair = Pair(ASKED, "good", "bad", 1.0)
    assert pair.turned() == Pair(ASKED, "bad", "good", 1.0) and pair.turned().turned() == pair
    assert pair.key == pair.turned().key and pair.digest != pair.turned().digest
    assert len(pair.key) == len(pair.digest) == 16


def test_nothing_that_differs_has_one_name():
    pairs = [
        Pair(ASKED, "ab", "c"),
        Pair(ASKED, "a", "bc"),
        Pair((("user", "Why?a"),), "b", "c"),
        Pair((("user", "Why?"), ("user", "ab")), "c", ""),
        Pair(ASKED, "ab", "c", 1.0),
        Pair(ASKED, "ab", "c", None, 1.0),
        Pair(ASKED, (("assistant", "ab"),), "c"),
        Pair(ASKED, "('ab',)", "c"),
    ]
    assert len({pair.digest for pair in pairs}) == len(pairs)
    graded = [Rated(ASKED, "a", labels) for labels in ((1.0, None), (None, 1.0), (1.0,), (2.0,))]
    assert len({answer.digest for answer in graded}) == 4


def test_a_contest_is_each_chosen_answer_against_each_rejected_one():
    contest = Contest(ASKED, ("a", "b"), ("c", "d"), margin=2.0, subset="s")
    assert list(contest.pairs()) == [
        Pair(ASKED, good, bad, 2.0, None, "s") for good in "ab" for bad in "cd"
    ]
    assert {pair.prompt_id for pair in contest.pairs()} == {contest.prompt_id}

"""Every data set's own columns are read; ties, gaps and odd types are named, not guessed at."""

import json
from typing import get_args

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.schema import Format, Source
from grm_ray.data import sources
from grm_ray.data.adapters import ADAPTERS, adapter_of
from grm_ray.data.sources import Quarantine

USER, ASSISTANT = "user", "assistant"


def said(*texts):
    """A conversation in which user and assistant take turns."""
    return [{"role": (USER, ASSISTANT)[i % 2], "content": text} for i, text in enumerate(texts)]


def source(tmp_path, name, rows, **keys):
    file = tmp_path / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Source(path=str(file), format=name, **keys)


def read(tmp_path, name, rows, **keys):
    quarantine = Quarantine()
    found = list(sources.iterate(source(tmp_path, name, rows, **keys), quarantine))
    return found, [(row["line"], row["reason"]) for row in quarantine.rows]


def judge(tmp_path, name, rows, **keys):
    return list(sources.contests(source(tmp_path, name, rows, **keys), Quarantine()))


def answers(pairs):
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_columns_under_other_names(tmp_path):
    names = {"prompt": "q", "chosen": "good", "rejected": "bad", "margin": "gap"}
    rows = [
        {"q": "Why?", "good": "So.", "bad": "No.", "gap": 1.5},
        {"q": "How?", "good": "So.", "bad": "No."},
        {"good": "So.", "bad": "No."},
    ]
    pairs, reasons = read(tmp_path, "columns", rows, columns=names)
    assert [(p.prompt, p.chosen, p.rejected, p.margin) for p in pairs] == [
        (((USER, "Why?"),), "So.", "No.", 1.5),
        (((USER, "How?"),), "So.", "No.", None),
    ]
    assert reasons == [(3, "no 'prompt', and the answers are not conversations")]
    with pytest.raises(ConfigError, match="needs columns 'bad', 'gap', 'good', 'q'; found"):
        read(tmp_path, "columns", rows[1:], columns=names)


def test_unified_feedback_rows_become_pairs_and_prompts(tmp_path):
    def row(a, b, question="Why?"):
        return {
            "conv_A": said(question, "A"),
            "conv_A_rating": a,
            "conv_B": said(question, "B"),
            "conv_B_rating": b,
            "source": "made here",
        }

    rows = [row(1.0, 0.0), row(0.0, 2.5, "How?"), row(1.0, 1.0), row(None, 1.0), row("1", 0.0)]
    pairs, reasons = read(tmp_path, "unified_feedback", rows)
    assert answers(pairs) == [("A", "B"), ("B", "A")]
    assert [(p.margin, p.subset) for p in pairs] == [(1.0, "made here"), (2.5, "made here")]
    assert [line for line, _ in reasons] == [3, 4, 5]
    assert all("tie" in reason for _, reason in reasons[:2])
    assert "not in the named format" in reasons[2][1]
    asked = sources.prompts(source(tmp_path, "unified_feedback", rows), Quarantine())
    assert [p.messages for p in asked] == [((USER, "Why?"),), ((USER, "How?"),)]
    with pytest.raises(ConfigError, match="'conv_A_rating'"):
        sources.check(source(tmp_path, "unified_feedback", [{"prompt": "a"}]), {"prompt"})


def test_preference_700k_has_scores_in_some_rows(tmp_path):
    def row(question, **scores):
        return {"chosen": said(question, "A"), "rejected": said(question, "B"), **scores}

    rows = [
        row("one", chosen_score=5.0, rejected_score=3.5),
        row("two", chosen_score=None, rejected_score=None),
        row("three"),
        row("four", chosen_score=1.0, rejected_score=1.0),
        {"chosen": said("five", "A"), "rejected": said("six", "B")},
        {"chosen": said("seven"), "rejected": said("seven")},
        row("eight", chosen_score=float("nan"), rejected_score=float("nan")),
    ]
    pairs, reasons = read(tmp_path, "preference_700k", rows)
    assert [p.margin for p in pairs] == [1.5, None, None, None, None]
    assert [line for line, _ in reasons] == [5, 6]


HELPFUL = [
    {"prompt": "Name a bird.", "response": "Robin.", "helpfulness": 4, "verbosity": 1},
    {"prompt": "Name a bird.", "response": "Bird.", "helpfulness": 1, "verbosity": 0},
    {"prompt": "Name a fish.", "response": "Cod.", "helpfulness": 3, "verbosity": 1},
    {"prompt": "Name a fish.", "response": "Eel.", "helpfulness": 3, "verbosity": 2},
    {"prompt": "Name a tree.", "response": "Elm.", "helpfulness": 2, "verbosity": None},
    {
        "prompt": "Hi.\n\n<extra_id_1>Assistant\nHello!\n\n<extra_id_1>User\nName a cat.",
        "response": "Tom.",
        "helpfulness": 0,
        "verbosity": 1,
    },
    {
        "prompt": "Hi.\n\n<extra_id_1>Assistant\nHello!\n\n<extra_id_1>User\nName a cat.",
        "response": "Felix, an old name for cats.",
        "helpfulness": 3,
        "verbosity": 2,
    },
]


def test_helpsteer2_neighbours_become_a_pair_with_the_difference_as_margin(tmp_path):
    pairs, reasons = read(tmp_path, "helpsteer2", HELPFUL)
    assert answers(pairs) == [("Robin.", "Bird."), ("Felix, an old name for cats.", "Tom.")]
    assert [p.margin for p in pairs] == [3, 3]
    assert pairs[1].prompt == ((USER, "Hi."), (ASSISTANT, "Hello!"), (USER, "Name a cat."))
    assert reasons == [(3, "tie: equally helpful"), (5, "only one answer to its prompt")]


def test_helpsteer2_takes_two_neighbours_at_a_time_and_a_broken_line_between_them(tmp_path):
    again = [{**row, "response": row["response"] * 2} for row in HELPFUL[:2]]
    pairs, reasons = read(tmp_path, "helpsteer2", [*HELPFUL[:2], *again, [1], *HELPFUL[4:5]])
    assert answers(pairs) == [("Robin.", "Bird."), ("Robin.Robin.", "Bird.Bird.")]
    assert reasons == [(5, "not an object: list"), (6, "only one answer to its prompt")]


def test_helpsteer2_rows_are_graded_answers_each(tmp_path):
    quarantine = Quarantine()
    file = source(tmp_path, "helpsteer2", HELPFUL)
    found = list(sources.rated(file, ["helpfulness", "verbosity"], quarantine))
    assert [r.labels for r in found][3:] == [(3, 2), (2, None), (0, 1), (3, 2)]
    assert found[-1].prompt[1] == (ASSISTANT, "Hello!")
    assert not quarantine.rows


def test_helpsteer2_preference_strength_names_the_better_one_and_by_how_much(tmp_path):
    def row(strength, prompt, split="train"):
        return {
            "split": split,
            "prompt": prompt,
            "response_1": "one",
            "response_2": "two",
            "preference_strength": strength,
        }

    rows = [row(-3, "a"), row(1, "b"), row(0, "c"), row(None, "d"), row(2, "e", "val")]
    pairs, reasons = read(tmp_path, "helpsteer2_preference", rows)
    assert answers(pairs) == [("one", "two"), ("two", "one")]
    assert [p.margin for p in pairs] == [3, 1]
    assert [line for line, _ in reasons] == [3, 4] and "tie" in reasons[0][1]
    (validation,), _ = read(tmp_path, "helpsteer2_preference", rows, split="validation")
    assert validation.prompt == ((USER, "e"),)


def test_hh_rlhf_strings_become_conversations(tmp_path):
    def row(chosen, rejected, head="\n\nHuman: Hi there\n\nAssistant: Hello\n\nHuman: Bye?"):
        return {
            "chosen": f"{head}\n\nAssistant: {chosen}",
            "rejected": f"{head}\n\nAssistant: {rejected}",
        }

    double = row("Yes", "No", "\n\nHuman: One\n\nHuman: Two")
    rows = [
        row("Bye: see you", "No\n\nnever"),
        row("Yes", ""),
        {"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"},
        {"chosen": row("a", "b")["chosen"], "rejected": "\n\nHuman: Else\n\nAssistant: b"},
        {"chosen": None, "rejected": "x"},
        double,
    ]
    pairs, reasons = read(tmp_path, "hh_rlhf", rows)
    assert pairs[0].prompt == ((USER, "Hi there"), (ASSISTANT, "Hello"), (USER, "Bye?"))
    assert answers(pairs) == [("Bye: see you", "No\n\nnever"), ("Yes", "No")]
    assert pairs[1].prompt == ((USER, "One\n\nTwo"),)
    assert [line for line, _ in reasons] == [2, 3, 4, 5]


def test_hhh_alignment_labels_say_which_choice_is_better(tmp_path):
    def row(text, labels, choices=("kind", "rude")):
        return {"input": text, "targets": {"choices": list(choices), "labels": labels}}

    rows = [
        row("May I?", [1, 0]),
        row("May I?\n\nAssistant: What?\n\nHuman: Sit here.", [0, 1]),
        row("Same?", [1, 1]),
        row("Short?", [1]),
        {"input": "Odd?", "targets": None},
    ]
    found = judge(tmp_path, "hhh_alignment", rows, subset="harmless")
    assert [(c.chosen, c.rejected) for c in found] == [
        (("kind",), ("rude",)),
        (("rude",), ("kind",)),
    ]
    assert found[1].prompt == ((USER, "May I?"), (ASSISTANT, "What?"), (USER, "Sit here."))
    assert {c.subset for c in found} == {"harmless"}
    reasons = read(tmp_path, "hhh_alignment", rows)[1]
    assert [line for line, _ in reasons] == [3, 4, 5] and "tie" in reasons[0][1]


def mt_bench(winner, turn, question="Q1"):
    return {
        "question_id": 1,
        "model_a": "x",
        "model_b": "y",
        "winner": winner,
        "judge": "somebody",
        "conversation_a": said(question, "A1", "Q2", "A2"),
        "conversation_b": said(question, "B1", "Q2", "B2"),
        "turn": turn,
    }


def test_mt_bench_judgements_are_of_the_dialogue_up_to_their_turn(tmp_path):
    rows = [
        mt_bench("model_a", 1),
        mt_bench("model_b", 2),
        mt_bench("tie", 1),
        mt_bench("tie (inconsistent)", 1),
        mt_bench("error", 1),
        mt_bench("model_a", None),
        mt_bench("model_a", 3),
        mt_bench("model_b", 1),  # another judge's opinion of the first
        mt_bench("model_a", 1),
    ]
    found = judge(tmp_path, "mt_bench_human", rows)
    first, second, *more = found
    assert (first.prompt, first.chosen, first.rejected) == (((USER, "Q1"),), ("A1",), ("B1",))
    assert second.prompt == ((USER, "Q1"),)
    assert second.chosen == (((ASSISTANT, "B1"), (USER, "Q2"), (ASSISTANT, "B2")),)
    assert second.rejected == (((ASSISTANT, "A1"), (USER, "Q2"), (ASSISTANT, "A2")),)
    assert [c.chosen for c in more] == [("B1",), ("A1",)]
    assert [c.subset for c in found] == ["turn 1", "turn 2", "turn 1", "turn 1"]
    pairs, reasons = read(tmp_path, "mt_bench_human", rows)
    assert len(pairs) == 4 and [line for line, _ in reasons] == [3, 4, 5, 6, 7]


def test_mt_bench_as_the_authors_read_it_counts_a_tie_for_model_b(tmp_path):
    rows = [mt_bench("model_a", 1), mt_bench("tie", 1), mt_bench("tie", 1)]
    found = judge(tmp_path, "mt_bench_human_authors", rows)
    whole = {
        side: ((ASSISTANT, f"{side}1"), (USER, "Q2"), (ASSISTANT, f"{side}2")) for side in "AB"
    }
    assert [(c.chosen[0], c.rejected[0]) for c in found] == [
        (whole["A"], whole["B"]),
        *[(whole["B"], whole["A"])] * 2,
    ]


def test_reward_bench_names_its_subsets(tmp_path):
    row = {"id": 7, "prompt": "Add.", "chosen": "4", "rejected": "5", "subset": "math"}
    rows = [row, {**row, "id": 8, "rejected": None}, {**row, "prompt": said("a", "b", "c")}]
    first, second = judge(tmp_path, "reward_bench", rows)
    assert (first.name, first.subset, first.chosen, first.rejected) == ("7", "math", ("4",), ("5",))
    assert len(second.prompt) == 3
    turned = {**row, "chosen": "5", "rejected": "4"}
    assert len(judge(tmp_path, "reward_bench", [row, row, turned])) == 3  # as it is scored


def test_reward_bench_2_has_several_answers_on_a_side(tmp_path):
    row = {"id": "1", "prompt": "Add.", "chosen": ["4"], "rejected": list("567"), "subset": "Math"}
    ties = {**row, "id": "tied:3", "chosen": ["red", "blue"], "subset": "Ties"}
    bad = [
        {**row, "rejected": ["5", ""]},
        {**row, "rejected": "5"},
        {**row, "chosen": []},
        {**row, "chosen": ["5"]},
        {**row, "rejected": [5]},
    ]
    found = judge(tmp_path, "reward_bench_2", [row, ties, *bad])
    assert [(c.chosen, c.rejected, c.subset, c.name) for c in found] == [
        (("4",), ("5", "6", "7"), "Math", "1"),
        (("red", "blue"), ("5", "6", "7"), "Ties", "tied:3"),
    ]
    pairs, reasons = read(tmp_path, "reward_bench_2", [row, ties, *bad])
    assert answers(pairs)[:4] == [("4", "5"), ("4", "6"), ("4", "7"), ("red", "5")]
    assert len(pairs) == 9 and [line for line, _ in reasons] == [3, 4, 5, 6, 7]


def test_rm_bench_keeps_the_order_of_its_styles(tmp_path):
    row = {
        "id": 3,
        "prompt": "Tell.",
        "chosen": ["c", "c long", "c **bold**"],
        "rejected": ["r", "r long", "r **bold**"],
        "domain": "chat",
    }
    (contest,) = judge(tmp_path, "rm_bench", [row, {**row, "chosen": ["c"]}])
    assert contest.chosen == tuple(row["chosen"]) and contest.rejected == tuple(row["rejected"])
    assert contest.subset == "chat" and contest.name == "3"
    pairs, reasons = read(tmp_path, "rm_bench", [row, {**row, "chosen": ["c"]}])
    assert len(pairs) == 9
    assert reasons == [(2, "not three chosen and three rejected answers")]


def test_rm_bench_file_is_one_array(tmp_path):
    rows = [
        {"prompt": f"Tell {i}.", "chosen": list("abc"), "rejected": list("def")} for i in range(3)
    ]
    file = tmp_path / "all.json"
    file.write_text(json.dumps(rows, indent=4))
    found = list(sources.contests(Source(path=str(file), format="rm_bench"), Quarantine()))
    assert [c.prompt[0][1] for c in found] == ["Tell 0.", "Tell 1.", "Tell 2."]


def test_reward_math_gathers_a_problems_solutions(tmp_path):
    def row(problem, kind, steps):
        return {
            "problem": f"Solve {problem}.",
            "eval_solution": steps,
            "solution_type": kind,
            "subject": "Algebra",
            "problem_id": problem,
        }

    rows = [
        row(0, "chosen", ["Think.", "It is 4."]),
        *[row(0, "rejected", f"It is {n}.") for n in range(5, 14)],
        row(1, "rejected", "It is 1."),
        row(2, "chosen", "It is 2."),
        row(2, "maybe", "It is 3."),
    ]
    (contest,) = judge(tmp_path, "reward_math", rows)
    assert contest.chosen == ("Think.\nIt is 4.",) and len(contest.rejected) == 9
    assert (contest.subset, contest.name) == ("Algebra", "0")
    reasons = read(tmp_path, "reward_math", rows)[1]
    assert [line for line, _ in reasons] == [11, 12]


def test_every_format_of_the_schema_has_its_adapter():
    assert set(get_args(Format)) == {*ADAPTERS, "columns"}


@pytest.mark.parametrize(
    ("keys", "opened"),
    [
        ({"format": "helpsteer2_preference"}, {"data_dir": "preference", "split": "train"}),
        (
            {"format": "helpsteer2_preference", "split": "val"},
            {"data_dir": "preference", "split": "train"},
        ),
        (
            {"format": "hh_rlhf", "subset": "helpful-base", "split": "test"},
            {"data_dir": "helpful-base", "split": "test"},
        ),
    ],
)
def test_sets_that_the_hub_keeps_in_folders_are_opened_there(keys, opened):
    source = Source(path="owner/name", **keys)
    assert adapter_of(source).hub(source) == opened

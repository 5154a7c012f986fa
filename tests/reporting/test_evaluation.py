import json
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pyarrow as pa
import pytest

from grm_ray.config.schema import Source
from grm_ray.drivers import judging
from grm_ray.reporting.evaluation import write_evaluation
from grm_ray.reporting.tables import Figure, Table, fixed, plain, shortened

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Tags that are open, every address, and the boxes around tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses, self.bare_tables = [], set(), [], 0
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]
        self.addresses += [v for k, v in attrs if k.startswith("on")]
        self.bare_tables += tag == "table" and self.open[-1] != ("div", "scroll")
        if tag not in ("meta", "br"):
            self.open.append((tag, dict(attrs).get("class")))

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1][0] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()


def scored(wins, margin=1.0, sides=(1, 1), subset="", per_prompt=1):
    """A table of scores in which contest i is won where `wins[i]`; chosen answers are longer."""
    chosen, rejected = sides
    rows = [
        {
            "contest": i,
            "chosen": j < chosen,
            "score": (margin if won else -margin) * (j < chosen),
            "characters": 20 if j < chosen else 10,
            "subset": subset or "abc"[i % 2],
            "prompt_id": f"p{i // per_prompt}",
        }
        for i, won in enumerate(wins)
        for j in range(chosen + rejected)
    ]
    return pa.Table.from_pylist(rows)


def judged(tables, formats=None, left_out=None):
    """The result of judging `tables[model][set]`; the first model is the baseline."""
    found = {m: {s: judging.contests(t) for s, t in sets.items()} for m, sets in tables.items()}
    baseline = next(iter(found))
    results = {}
    for name in found[baseline]:
        form = (formats or {}).get(name, "trl")
        results[name] = {model: judging.judged(sets[name], form) for model, sets in found.items()}
        for model in found:
            if model != baseline:
                versus = judging.versus(found[baseline][name], found[model][name])
                results[name][model]["versus"] = versus
    return {
        "name": "demo",
        "baseline": baseline,
        "models": {model: {"path": f"runs/{model}"} for model in found},
        "sets": {
            name: {
                "path": f"{name}.jsonl",
                "format": (formats or {}).get(name, "trl"),
                "contests": len(found[baseline][name]),
                "prompts": len({c.cluster for c in found[baseline][name]}),
                "longer_wins": judging.length_baseline(found[baseline][name]),
            }
            for name in found[baseline]
        },
        "results": results,
        "left_out": left_out or {},
    }


def write(result, folder):
    """Page, Markdown and picture, once the page has proved safe and whole."""
    path = write_evaluation(json.loads(json.dumps(result)), folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.addresses == [] and page.bare_tables == 0
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    assert "default-src 'none'" in text
    assert not list(folder.glob("*.new"))
    picture = folder / "evaluation.svg"
    return (
        text,
        (folder / "evaluation.md").read_text(encoding="utf-8"),
        picture.read_text(encoding="utf-8") if picture.exists() else None,
    )


def row(markdown, name, part="## Accuracy"):
    """The cells of the first row called `name` after the title `part`."""
    rest = markdown.split(f"{part}\n")[1]
    line = next(line for line in rest.splitlines() if line.startswith(f"| {name} |"))
    return [cell.strip() for cell in line.strip("|").split("|")]


def three_models():
    """One that wins half, one that wins more, one that wins the same number, elsewhere."""
    half = [i < 20 for i in range(40)]
    return {
        "base": {"one": scored(half)},
        "better": {"one": scored([i < 34 for i in range(40)])},
        "other": {"one": scored([i >= 20 for i in range(40)])},
    }


def test_a_sign_stands_only_where_the_difference_to_the_baseline_leaves_out_zero(tmp_path):
    text, markdown, _ = write(judged(three_models()), tmp_path)
    assert row(markdown, "base (baseline)")[1].startswith("50.0 (")
    assert row(markdown, "better")[1].startswith("▲ 85.0 (")
    assert row(markdown, "other")[1].startswith("50.0 (")
    assert "Of 2 such comparisons about 0.1 would be marked by chance" in markdown
    assert text.count('class="sign up"') == 1 and 'class="sign"' not in text
    swapped = three_models()
    swapped = {"better": swapped["better"], "base": swapped["base"]}
    assert row(write(judged(swapped), tmp_path)[1], "base")[1].startswith("▼ 50.0 (")


def test_the_verdict_names_gains_and_calls_chance_chance(tmp_path):
    text, markdown, _ = write(judged(three_models()), tmp_path)
    for shown in (text, markdown):
        assert "better is better than base on the one set and worse on none." in shown
        assert "other is better than base on no set, and worse on none" in shown


def test_page_and_markdown_hold_the_same_figures(tmp_path):
    text, markdown, _ = write(judged(three_models(), left_out={"tie": 2}), tmp_path)
    cells = re.findall(r"<td[^>]*>(.*?)</td>", text)
    words = {re.sub(r"<.*?>", "", cell).replace("▲", "").strip() for cell in cells}
    table_lines = [line for line in markdown.splitlines() if line.startswith("| ")]
    shown = {c.replace("▲", "").strip() for line in table_lines for c in line.strip("|").split("|")}
    assert words <= shown and len(words) > 15


def test_the_difference_is_paired_and_stands_beside_what_would_have_shown(tmp_path):
    result = judged(three_models())
    versus = result["results"]["one"]["better"]["versus"]
    _, markdown, _ = write(result, tmp_path)
    line = next(x for x in markdown.splitlines() if x.startswith("| one | better | +35.0 ("))
    assert f"| {100 * versus['detectable']:.1f} | 35.0 |" in line
    assert "in four of five cases" in markdown


def test_length_stands_beside_what_the_data_choose(tmp_path):
    _, markdown, _ = write(judged(three_models()), tmp_path)
    # The chosen answer is always longer: a model scores the longer one higher where it is right.
    cells = row(markdown, "one", "## Length bias, ties and calibration")
    assert cells[3].startswith("50.0 (") and cells[4] == "100.0" and cells[5] == "0.0"
    assert row(markdown, "the longer answer wins")[1] == "100.0 (100.0–100.0)"


def test_ties_are_counted_among_pairs(tmp_path):
    tied = {"flat": {"one": scored([True] * 8, margin=0.0)}}
    _, markdown, _ = write(judged(tied), tmp_path)
    assert row(markdown, "flat")[1].startswith("0.0 (")
    assert row(markdown, "one", "## Length bias, ties and calibration")[5] == "100.0"


def test_unknown_numbers_are_dashes_and_nothing_else(tmp_path):
    # One prompt has no interval; scores all alike have no correlation.
    result = judged({"a": {"one": scored([True], margin=0.0)}, "b": {"one": scored([True])}})
    result["results"]["one"]["b"]["calibration"]["ece"] = float("nan")
    text, markdown, _ = write(result, tmp_path)
    assert row(markdown, "b")[1] == "100.0"
    assert "is better than" not in text  # one prompt tells nothing apart, not even chance
    cells = row(markdown, "one", "## Length bias, ties and calibration")
    assert cells[2] == "–" and cells[3] == "–"
    for shown in (text, markdown):
        assert not re.search(r"\b(nan|NaN|None)\b", shown)


def test_a_result_with_holes_still_has_a_page(tmp_path):
    result = judged(three_models())
    del result["results"]["one"]["better"], result["left_out"]
    del result["sets"]["one"]["longer_wins"]
    _, markdown, picture = write(result, tmp_path)
    assert row(markdown, "better")[1] == "–" and row(markdown, "the longer answer wins")[1] == "–"
    assert "better" in picture
    result["results"] = {}
    _, markdown, _ = write(result, tmp_path / "none")
    assert row(markdown, "base (baseline)")[1] == "–"


def test_rm_bench_shows_difficulties_domains_and_what_is_missing(tmp_path):
    tables = {"m": {"rm": scored([True] * 6, sides=(3, 3), subset="chat")}}
    result = judged(tables, {"rm": "rm_bench"})
    suite = result["results"]["rm"]["m"]["suite"]
    suite["levels"] = {"easy": 0.95, "normal": 0.6, "hard": 0.2}
    _, markdown, _ = write(result, tmp_path)
    assert "**RM-Bench: rm**" in markdown and "Missing: math, code, safety." in markdown
    assert row(markdown, "m", "## Benchmark scores")[2:5] == ["95.0", "60.0", "20.0"]


def test_a_benchmark_that_cannot_be_scored_says_why(tmp_path):
    tables = {m: {"rm": scored([True] * 6, subset="chat")} for m in ("m", "n")}
    text, markdown, _ = write(judged(tables, {"rm": "rm_bench"}), tmp_path)
    for shown in (text, markdown):
        assert "three chosen and three rejected answers" in shown
    assert row(markdown, "every model", "## Benchmark scores")


def test_a_set_of_pairs_has_no_section_on_many_answers(tmp_path):
    assert "One against many" not in write(judged(three_models()), tmp_path)[1]
    tables = {"m": {"many": scored([True, False] * 5, sides=(1, 9))}}
    _, markdown, _ = write(judged(tables), tmp_path)
    cells = row(markdown, "many", "## One against many")
    assert cells[2].startswith("50.0 (") and cells[4].startswith("0.550 (")


def test_subsets_are_folded_away_and_shown_where_there_are_several(tmp_path):
    tables = {"m": {"two": scored([True, False] * 8), "single": scored([True] * 8, subset="a")}}
    text, markdown, _ = write(judged(tables), tmp_path)
    assert "<details><summary>Subsets of two</summary>" in text
    assert "Subsets of single" not in text + markdown
    cells = row(markdown, "a", "## Subsets of two")
    assert cells[1].startswith("100.0") and cells[-1] == "8 / 8"


def test_what_was_left_out_is_told_by_reason_the_most_frequent_first(tmp_path):
    _, markdown, _ = write(judged(three_models(), left_out={"tie": 2, "empty": 1200}), tmp_path)
    assert "1,202 rows" in markdown
    assert markdown.index("| empty | 1,200 |") < markdown.index("| tie | 2 |")
    assert "Every row of the data could be used" in write(judged(three_models()), tmp_path)[1]


def test_what_data_and_configs_wrote_is_shown_and_never_run(tmp_path):
    nasty = "<script>alert('x')</script> | a_b *c* `d` <img src=x onerror=y> \x00\x1b[31m\nend"
    result = judged({nasty: {"s" + nasty: scored([True, False] * 6, subset="a" + nasty)}})
    found = result["results"]["s" + nasty][nasty]["subsets"]
    found["b" + nasty] = found["a" + nasty]
    result["name"] = nasty
    result["models"][nasty]["path"] = nasty
    result["left_out"] = {nasty: 1}
    text, markdown, picture = write(result, tmp_path)
    assert "&lt;script&gt;alert(&#x27;x&#x27;)" in text
    ElementTree.fromstring(picture)
    for shown in (text, markdown, picture):
        assert "<script" not in shown and "<img" not in shown
        assert "\x00" not in shown and "\x1b" not in shown
    # A bar or a new line in a name neither adds a column nor ends a row.
    for block in re.findall(r"(?:^\|.*\n?)+", markdown, re.MULTILINE):
        counts = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(counts) == 1, block


def test_the_picture_has_a_mark_a_model_and_set_inside_its_frame(tmp_path):
    tables = {m: {"one": s["one"], "two": s["one"]} for m, s in three_models().items()}
    _, _, picture = write(judged(tables), tmp_path)
    root = ElementTree.fromstring(picture)
    assert root.tag == f"{SVG}svg" and "var(" not in picture
    titles = [title.text for title in root.iter(f"{SVG}title")]
    for model in tables:
        for name in ("one", "two"):
            assert sum(t.startswith(f"{model}, {name}: ") for t in titles) == 1
    assert sum(t.startswith("the longer answer wins: 100.0 %") for t in titles) == 2
    left, _, wide, _ = (float(n) for n in root.get("viewBox").split())
    places = [float(n) for n in re.findall(r'd="M([\d.]+)', picture)]
    assert places and all(left <= x <= left + wide for x in places)


def test_a_higher_accuracy_lies_further_right_and_guessing_between(tmp_path):
    tables = {
        "low": {"one": scored([i < 4 for i in range(40)])},
        "high": {"one": scored([i < 36 for i in range(40)])},
    }
    _, _, picture = write(judged(tables), tmp_path)

    def place(name):
        group = re.search(rf'mark" d="M([\d.]+) [^>]*><title>{name}, one', picture)
        return float(group[1])

    # In the legend marks have a place of their own; the line over the plot is the last one.
    guess = float(re.findall(r'class="guide" d="M([\d.]+)', picture)[-1])
    assert place("low") < guess < place("high")
    assert guess == pytest.approx((place("low") + place("high")) / 2, abs=0.2)


def test_ten_models_on_twelve_sets_stay_apart(tmp_path):
    table = scored([True, False] * 6)
    names = [f"a-long-name-of-a-cell-of-some-study-seed{i}" for i in range(10)]
    tables = {m: {f"set{j}": table for j in range(12)} for m in names}
    text, markdown, picture = write(judged(tables), tmp_path)
    marks = set(re.findall(r'class="(c\d) mark" d="M[\d.]+ -?[\d.]+(m[^"]+)"', picture))
    assert len(marks) == 10
    assert len({shortened(name) for name in names}) == 10
    assert f'<span title="{names[3]}">{shortened(names[3])}</span>' in text
    assert names[3] in markdown


def test_bins_of_few_pairs_are_left_out_of_the_reliability_plot(tmp_path):
    result = judged({"m": {"one": scored([True] * 12)}})
    text, _, _ = write(result, tmp_path)
    assert "m: 73.1 % sure, 100.0 % right, 12 pairs" in text
    few = judged({"m": {"one": scored([True] * 9)}})
    assert "Reliability" not in write(few, tmp_path)[0]


def test_numbers_have_a_real_minus_and_zero_has_no_sign():
    assert [fixed(v, 1, 100, plus=True) for v in (0.0412, -0.0412, -0.0001, 0.0001, None)] == [
        "+4.1",
        "−4.1",
        "0.0",
        "0.0",
        "–",
    ]


def test_markdown_shows_names_as_they_are():
    assert plain("in_distribution") == "in_distribution"
    assert plain("_a_ | *b*\n`c` <d>") == r"\_a\_ \| \*b\* \`c\` &lt;d>"
    table = Table(["a", "b"], [["x", Figure("1", "0–2", "▲")]])
    assert table.markdown().splitlines() == ["| a | b |", "|---|---:|", "| x | ▲ 1 (0–2) |"]


def trained_often(seeds, factor="seed"):
    """A study's result: two models and an ensemble, trained `seeds` times."""
    runs = [judging.contests(scored([i < 20 + s for i in range(40)])) for s in range(seeds)]
    other = [judging.contests(scored([i < 30 + s for i in range(40)])) for s in range(seeds)]
    found = {"bt": {"one": runs}, "grm": {"one": other}, "grm/mean": {"one": other[:1]}}
    return {
        "name": "study",
        "baseline": "bt",
        "models": {
            "bt": {"cells": ["k0", "k1"]},
            "grm": {"cells": ["k2", "k3"]},
            "grm/mean": {"members": ["k2", "k3"], "aggregate": "mean"},
        },
        "repetitions": {"factor": factor, "choices": [f"s{i}" for i in range(seeds)]},
        "beforehand": {"one": {"contests": 40, "in_training_files": 3}},
        **judging.of_repetitions(
            found,
            {"one": Source(path="one.jsonl")},
            dict.fromkeys(found, "bt"),
            ["grm/mean"],
        ),
    }


def test_a_study_says_what_its_intervals_cover_and_shows_each_training(tmp_path):
    text, markdown, _ = write(trained_often(3), tmp_path)
    for shown in (text, markdown):
        assert "Figures are means over 3 trainings (seed: s0, s1, s2)" in shown
        assert "cover both prompts and trainings" in shown
        assert "An ensemble exists only once" in shown
        assert "bootstrapped" not in shown and "mostly chance" not in shown
        assert "The prompts of 3 of 40 contests of one are also in the training files." in shown
        assert "from study.json" in shown
    assert row(markdown, "one", "## Each training")[2:] == [
        "50.0", "52.5", "55.0", "–", "–", "–"
    ]  # fmt: skip
    each = markdown.split("## Each training\n")[1]
    assert "|  | grm | 75.0 | 77.5 | 80.0 | +25.0 | +25.0 | +25.0 |" in each
    # An ensemble has no trainings of its own to show, and no calibration.
    assert "grm/mean" not in each.split("## ")[0]
    biases = markdown.split("## Length bias, ties and calibration\n")[1].split("## ")[0]
    assert biases.split("| grm/mean |")[1].split("\n")[0].strip(" |").endswith("–")


def test_one_seed_says_nothing_about_training_and_two_say_little(tmp_path):
    _, markdown, _ = write(trained_often(1), tmp_path)
    assert "There is only one seed: the interval does not include training noise." in markdown
    assert "## Each training" not in markdown
    _, markdown, _ = write(trained_often(2), tmp_path)
    assert "their width is mostly chance: see each training below" in markdown

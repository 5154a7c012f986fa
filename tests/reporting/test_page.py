import json
from html.parser import HTMLParser

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grm_ray import report
from grm_ray.reporting.page import write_report


class Page(HTMLParser):
    """Tags that are open, and every address a tag points to."""

    EMPTY = frozenset({"meta", "path", "rect", "circle", "br"})

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.addresses = [], set(), []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href", "srcset", "data")]
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open}"
        self.open.pop()


def ppo_step(step, **more):
    return {
        "step": step,
        "time": 1.7e9 + step,
        "reward": 0.1 * step,
        "true_reward": 0.4 + 0.01 * step,
        "objective/kl": 0.2 * step,
        "response_length": 40.0 + step,
        "tokens_per_second": 400.0,
        "phase/generate": 5.0,
        "phase/learn": 6.0,
        "lr": 1e-5,
        **more,
    }


def sample(i, response, true_reward, reward=0.0):
    return {
        "uid": f"{i}-0-0",
        "prompt": f"prompt {i}",
        "response": response,
        "reward": reward,
        "true_reward": true_reward,
        "length": 12,
    }


def make_run(folder, job="ppo", steps=(), samples=None, config="ppo:\n  steps: 3\n"):
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(f"job: {job}\nname: demo\n{config}")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    (folder / "samples").mkdir()
    for name, rows in (samples or {}).items():
        pq.write_table(pa.Table.from_pylist(rows), folder / "samples" / f"{name}.parquet")
    return folder


def read(folder):
    path = write_report(folder)
    assert path == folder / "report.html"
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.addresses == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    return text


def whole_run(folder, gain=0.2, proxy_gain=1.0):
    before = [sample(i, f"old {i}", 0.3 + 0.01 * (i % 7)) for i in range(20)]
    after = [
        sample(i, f"new {i}", 0.3 + 0.01 * (i % 5) + gain * (1 + i / 20), proxy_gain + 0.01 * i)
        for i in range(20)
    ]
    steps = [ppo_step(0, **{"eval/true_reward": 0.33, "eval/reward": 0.0})]
    steps += [ppo_step(i) for i in (1, 2)]
    steps += [ppo_step(3, **{"eval/true_reward": 0.6, "eval/reward": 1.0})]
    return make_run(folder, steps=steps, samples={"before": before, "after": after})


def test_a_finished_run_says_what_was_gained_and_with_what_interval(tmp_path):
    text = read(whole_run(tmp_path / "run"))
    assert "On 20 held-out prompts the true reward rose, from 0.32" in text
    assert "95\u00a0% interval +" in text
    for words in ("KL to the reference", "nats per answer", "Seconds by phase", "ppo:\n  steps: 3"):
        assert words in text
    assert (
        "Largest gain" in text and "The median change" in text and "selected by that rule" in text
    )
    assert "still going on" not in text


def test_a_rising_score_without_a_rising_true_reward_is_called_over_optimisation(tmp_path):
    text = read(whole_run(tmp_path / "run", gain=-0.2))
    assert "the true reward fell" in text and "a sign of over-optimisation" in text
    assert "Smallest loss" in text or "Largest gain" in text


def test_no_difference_is_not_sold_as_one(tmp_path):
    rows = [sample(i, "x", 0.1 * (i % 3)) for i in range(12)]
    moved = [sample(i, "y", 0.1 * ((i + 1) % 3)) for i in range(12)]
    run = make_run(tmp_path / "run", steps=[ppo_step(3)], samples={"before": rows, "after": moved})
    assert "the true reward changed by no more than chance would explain" in read(run)


def test_what_models_and_data_wrote_is_shown_and_never_run(tmp_path):
    nasty = "<script>alert('x')</script><img src=x onerror=y> & \"q\" \x00\x1b[31m </div>"
    rows = [{**sample(0, nasty, 0.1), "prompt": nasty}]
    run = make_run(
        tmp_path / "run",
        steps=[ppo_step(1)],
        samples={"before": rows, "after": [{**rows[0], "true_reward": 0.5}]},
        config="note: '<script>'\n",
    )
    text = read(run)
    assert "&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;" in text
    assert "<script" not in text and "<img" not in text
    assert "\x00" not in text and "\x1b" not in text


def test_an_empty_folder_has_a_page_that_says_it_is_empty(tmp_path):
    (tmp_path / "run").mkdir()
    text = read(tmp_path / "run")
    assert "no config.yaml" in text and "No step has been finished yet" in text


def test_a_killed_run_shows_what_it_has_and_says_what_is_missing(tmp_path):
    run = make_run(
        tmp_path / "run",
        steps=[ppo_step(1), ppo_step(2, **{"loss/value": None, "non_finite": ["loss/value"]})],
        samples={"before": [sample(i, f"old {i}", 0.1 * i) for i in range(3)]},
        config="ppo:\n  steps: 20\n",
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "rew')
    (run / "samples" / "after.parquet").write_bytes(b"PAR1 half")
    (run / "quarantine.jsonl").write_text("{}\n{}\n")
    text = read(run)
    for words in (
        "1 line of metrics.jsonl could not be read",
        "Step 2 of 20",
        "samples/after.parquet cannot be read",
        "2 input rows could not be used",
        "first in step 2: loss/value",
        "Conversations, before training",
    ):
        assert words in text


def test_what_the_guard_did_is_said_above_the_curves(tmp_path):
    reason = "true_reward has fallen (0.700 to 0.500) <b>while</b> the reward rose"
    steps = [ppo_step(1), ppo_step(2, **{"guard/action": "stop", "guard/reason": reason})]
    page = read(make_run(tmp_path / "run", steps=steps))
    assert "Step 2, guard (stop): true_reward has fallen (0.700 to 0.500) &lt;b&gt;while" in page


def test_a_run_without_a_true_reward_is_judged_by_the_reward_and_says_so(tmp_path):
    before = [sample(i, "x", None, 0.1 * i) for i in range(8)]
    after = [sample(i, "y", None, 0.1 * i + 1 + 0.01 * i) for i in range(8)]
    run = make_run(
        tmp_path / "run",
        steps=[ppo_step(3, true_reward=None)],
        samples={"before": before, "after": after},
    )
    text = read(run)
    assert "the reward model&#x27;s score rose" in text or "the reward model's score rose" in text
    assert "No true reward was measured" in text
    assert "True reward: the judge" not in text


def test_a_reward_model_run_shows_accuracy_with_its_interval(tmp_path):
    steps = [
        {"step": 0, "time": 1.7e9, "eval/accuracy": 0.5, "eval/loss": 0.69},
        {"step": 1, "time": 1.7e9, "loss": 0.6, "accuracy": 0.6, "margin": 0.1, "phase/learn": 2.0},
        {
            "step": 2,
            "time": 1.7e9,
            "loss": 0.5,
            "loss/preference": 0.5,
            "accuracy": 0.7,
            "eval/accuracy": 0.71,
            "eval/accuracy_low": 0.66,
            "eval/accuracy_high": 0.76,
        },
    ]
    text = read(make_run(tmp_path / "run", "rm", steps, config="model:\n  path: tiny\n"))
    assert "71.0\u00a0% of cases (95\u00a0% interval 66.0\u00a0% to 76.0\u00a0%)" in text
    assert "not clearly better than chance" not in text
    assert "backbone tiny" in text and "Parts of the loss" in text
    steps[2]["eval/accuracy_low"] = 0.49
    text = read(make_run(tmp_path / "weak", "rm", steps))
    assert "not clearly better than chance" in text


def test_the_job_writes_the_page_of_one_run_and_names_it(tmp_path, capsys):
    for run in (whole_run(tmp_path / "one"), make_run(tmp_path / "two", "rm")):
        assert report.main([str(run)]) == 0
        assert capsys.readouterr().out.split() == [str(run / "report.html")]


@pytest.mark.parametrize("kind", ["missing", "file", "stranger"])
def test_a_folder_that_is_no_run_is_refused_in_one_line_before_anything_is_written(
    tmp_path, capsys, kind
):
    good = make_run(tmp_path / "good")
    bad = tmp_path / "bad"
    if kind == "file":
        bad.write_text("x")
    elif kind == "stranger":
        bad.mkdir()
    assert report.main([str(good), str(bad)]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and str(bad) in shown.err
    assert not (good / "report.html").exists()


def test_what_a_guard_watches_has_its_charts_where_there_is_any(tmp_path):
    for name, more in (
        ("plain", {}),
        ("watched", {"eval/canary": 0.8, "eval/canary_low": 0.6, "eval/canary_high": 0.9}),
    ):
        run = tmp_path / name
        run.mkdir()
        steps = [
            ppo_step(i, **more, **{"eval/disagreement": 0.2} if more else {}) for i in range(4)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(s) + "\n" for s in steps))
    plain, watched = (write_report(tmp_path / n).read_text() for n in ("plain", "watched"))
    for title in ("Canaries answered right", "Disagreement of the members"):
        assert title in watched and title not in plain


@pytest.mark.parametrize(
    "harm",
    [
        {"config.yaml": b"a: &a [*a]\n"},
        {"config.yaml": b"x: 2001-99-99\n"},
        {"config.yaml": b"reward: {members: [1, 2]}\n"},
        {"config.yaml": b"reward: {members: {a: 1, b: 2}}\n"},
        {"metrics.jsonl": b'{"step": 1e999}\n{"step": [1]}\n3\n{"step": 1, "reward": 1e308}\n'},
        {"metrics.jsonl": b'{"step": 1, "non_finite": 3}\n{"step": 2, "non_finite": [1, []]}\n'},
        {"metrics.jsonl": b'{"step": 1, "time": 1e300}\n'},
        {"metrics.jsonl": b'{"step": 1, "reward": ' + b"1" * 400 + b"}\n"},
        {"metrics.jsonl": b'{"step": 1, "guard/action": "\\ud800"}\n'},
        {"quarantine.jsonl": b'\xff\n3\n"x"\n{"rows": "many"}\n{"rows": 2}\n'},
    ],
)
def test_what_is_damaged_costs_no_page(tmp_path, harm):
    folder = whole_run(tmp_path / "run")
    for name, content in harm.items():
        (folder / name).write_bytes(content)
    assert report.main([str(folder)]) == 0
    assert "</html>" in (folder / "report.html").read_text(encoding="utf-8")


def test_rows_of_the_quarantine_are_counted_whatever_stands_between_them(tmp_path):
    folder = whole_run(tmp_path / "run")
    (folder / "quarantine.jsonl").write_bytes(b'\xff\n3\n{"rows": "many"}\n{"rows": 2}\n{}\n')
    assert "3 input rows could not be used" in write_report(folder).read_text(encoding="utf-8")


def test_answers_that_are_no_text_are_left_out_with_a_note(tmp_path):
    folder = whole_run(tmp_path / "run")
    bad = pa.array([b"\xff"], pa.binary()).view(pa.string())
    pq.write_table(pa.table({"uid": bad}), folder / "samples" / "before.parquet")
    text = write_report(folder).read_text(encoding="utf-8")
    assert "samples/before.parquet cannot be read" in text


@pytest.mark.parametrize("name", ["evaluation.json", "study.json", "best_of_n.json"])
@pytest.mark.parametrize("content", [b"{}", b"[]", b"\xff", b"{", b'{"models": 3}'])
def test_figures_that_are_damaged_are_refused_in_one_line(tmp_path, capsys, name, content):
    (tmp_path / name).write_bytes(content)
    assert report.main([str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"{name}: damaged, or of another version" in said and said.count("\n") == 1


def test_a_name_that_no_folder_can_have_is_refused_in_one_line(capsys):
    assert report.main(["x" * 5000]) == 2
    said = capsys.readouterr().err
    assert "File name too long" in said and said.count("\n") == 1

import json
import math

import numpy as np
import pytest
import yaml

from grm_ray import report
from grm_ray.reporting.disputed import farthest_apart
from grm_ray.reporting.findings import findings, verdict
from grm_ray.reporting.overoptimization import section
from grm_ray.reporting.run import read_run
from grm_ray.reporting.settings import differing, flattened
from grm_ray.reporting.trajectory import paired, read_trajectory
from tests.reporting.test_page import Page, make_run, ppo_step, sample, whole_run

PROMPTS = 24
NASTY = "<script>alert('x')</script><img src=x onerror=y> & \"q\" \x00 </div>"


def curve(d, a=0.5, b=0.28):
    """R(d) = d (a - b log d), which peaks at exp(a / b - 1) = 2.19."""
    return d * (a - b * math.log(d)) if d else 0.0


def studied_run(folder, steps=40, every=5, upto=None, true=True, kl=True, config="", **more):
    """A run whose true reward peaks near d = 2.2 while the reward goes on rising."""
    rows, files = [], {}
    for step in range((upto or steps) + 1):
        d = 5 * step / steps
        row = ppo_step(step, **{"objective/kl": (5 * (step - 1) / steps) ** 2})
        if step % every == 0:
            noise = [0.05 * ((7 * i + 3 * step) % 11 - 5) / 5 for i in range(PROMPTS)]
            gold = [0.4 + 0.01 * i + curve(d) + noise[i] for i in range(PROMPTS)]
            row |= {"eval/reward": 0.5 * d, "eval/length": 30 + d, "eval/list_rate": 0.1 * d}
            if true:
                row["eval/true_reward"] = sum(gold) / PROMPTS
            if kl:
                row["eval/kl"] = d * d
            name = "before" if not step else "after" if step == steps else f"held-out-{step:05d}"
            files[name] = [
                sample(i, f"answer {i}", gold[i] if true else None, 0.5 * d + 0.01 * (11.5 - i))
                for i in range(PROMPTS)
            ]
        rows.append(row | more)
    return make_run(folder, "ppo", rows, files, f"ppo:\n  steps: {steps}\n{config}")


def together(tmp_path, *folders):
    """The page of several runs as text, checked as every page is."""
    path = tmp_path / "page.html"
    assert report.main([*(str(folder) for folder in folders), "--output", str(path)]) == 0
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == [] and page.addresses == []
    assert not page.tags & {"script", "link", "img", "iframe", "object"}
    return text


def test_the_peak_of_the_true_reward_is_found_and_said(tmp_path):
    trajectory = read_trajectory(read_run(studied_run(tmp_path / "run")))
    found = findings(trajectory)
    log, place = found.fits[0]
    assert log.identified and log.peak == pytest.approx(math.exp(0.5 / 0.28 - 1), rel=0.05)
    assert place is not None and place.low <= log.peak <= place.high
    assert found.highest.step in (15, 20) and found.end.step == 40
    assert found.kept.share.mean == pytest.approx(curve(5) / curve(2.5), abs=0.05)
    assert found.kept.share.low < found.kept.share.mean < found.kept.share.high
    assert found.peak.fall.high < 0
    assert "In demo the true reward fell after its peak" in verdict([(trajectory, found)])


def test_a_run_that_has_not_turned_has_no_peak_and_the_page_says_why(tmp_path):
    early = studied_run(tmp_path / "early", upto=15)
    text = together(tmp_path, studied_run(tmp_path / "whole"), early)
    assert "above the start" in text
    assert "not identified: no point beyond the predicted peak" in text
    found = findings(read_trajectory(read_run(early)))
    assert (
        found.kept.share.mean == 1.0 and verdict([(read_trajectory(read_run(early)), found)]) == ""
    )


def test_a_fall_that_chance_can_make_is_no_sign_of_anything(tmp_path):
    rng = np.random.default_rng(4)
    rows, files = [], {}
    for step, gain in enumerate([0.0, 0.3, 0.3, 0.3, 0.29]):
        gold = 0.4 + gain + rng.normal(0, 0.3, PROMPTS)
        name = {0: "before", 4: "after"}.get(step, f"held-out-{step:05d}")
        files[name] = [sample(i, "x", float(value), step) for i, value in enumerate(gold)]
        figures = {"eval/true_reward": float(gold.mean()), "eval/reward": step, "eval/kl": step}
        rows.append(ppo_step(step, **figures))
    trajectory = read_trajectory(read_run(make_run(tmp_path / "run", "ppo", rows, files)))
    found = findings(trajectory)
    assert found.highest.means["true_reward"].value > found.end.means["true_reward"].value
    assert found.kept.share.low < 1 < found.kept.share.high
    assert verdict([(trajectory, found)]) == ""


def test_the_page_of_one_run_has_the_section_once_there_are_three_evaluations(tmp_path):
    text = section(read_run(studied_run(tmp_path / "run")))
    for words in ("√KL", "True reward over distance", "predicted peak", "gain kept", "d = 2."):
        assert words in text
    assert section(read_run(studied_run(tmp_path / "two", steps=40, every=40))) == ""
    assert section(read_run(whole_run(tmp_path / "old"))) == ""


def test_without_a_kl_of_its_own_an_evaluation_takes_that_of_the_next_steps_answers(tmp_path):
    with_kl = read_trajectory(read_run(studied_run(tmp_path / "with")))
    without = read_trajectory(read_run(studied_run(tmp_path / "without", kl=False)))
    assert with_kl.notes == [] and "training answers of the next step" in without.notes[0]
    kls = [e.kl for e in without.evaluations]
    assert kls[0] == 0.0
    # Row s + 1 tells the KL of the weights of step s; after the last step there is only its own.
    assert kls[:-1] == pytest.approx([e.kl for e in with_kl.evaluations[:-1]])
    assert kls[-1] == pytest.approx((5 * 39 / 40) ** 2)


def test_an_estimate_of_the_kl_below_zero_counts_as_no_distance(tmp_path):
    run = read_run(studied_run(tmp_path / "run"))
    run.steps[5]["eval/kl"] = -0.01
    trajectory = read_trajectory(run)
    assert trajectory.evaluations[1].d == 0.0
    assert not math.isnan(findings(trajectory).fits[0][0].a)


def test_prompts_are_paired_by_uid_and_only_those_that_all_evaluations_have(tmp_path):
    run = read_run(studied_run(tmp_path / "run"))
    run.samples["after"] = run.samples["after"][:0:-1]  # in another order, the first one lost
    evaluations = read_trajectory(run).evaluations
    rewards, reason = paired(evaluations)
    assert rewards.shape == (9, PROMPTS - 1) and reason == ""
    by_uid = {row["uid"]: row["true_reward"] for row in run.samples["after"]}
    assert list(rewards[-1]) == pytest.approx([by_uid[uid] for uid in sorted(by_uid)])
    (run.folder / "samples" / "held-out-00015.parquet").unlink()
    rewards, reason = paired(read_trajectory(run).evaluations)
    assert rewards is None and reason == "no answers of step 15 were saved"


def test_settings_that_differ_are_shown_and_those_alike_are_not(tmp_path):
    one = studied_run(tmp_path / "one", config="seed: 1\nreward: {members: [a, b], clip: 5.0}\n")
    two = studied_run(tmp_path / "two", config="seed: 1\nreward: {members: [a], clip: 5.0}\n")
    text = together(tmp_path, one, two)
    assert "reward.members" in text and "[&quot;a&quot;, &quot;b&quot;]" in text
    assert "reward.clip" not in text and ">seed<" not in text and "ppo.steps" not in text


def test_a_setting_that_one_run_lacks_differs_from_any_value():
    table = differing(["a", "b"], [{"x": {"y": None}, "name": "a"}, {"x": {}, "name": "b"}])
    assert [list(row) for row in table.rows] == [["x.y", "null", "–"], ["x", "–", "{}"]]
    assert differing(["a", "b"], [{"x": [1]}, {"x": [1]}]) is None
    assert flattened({"x": [{"path": "p"}, {"path": "q"}]}) == {"x.0.path": "p", "x.1.path": "q"}


def test_conversations_are_picked_by_the_distance_of_their_places():
    rows = [sample(i, f"a{i}", gold, proxy) for i, (gold, proxy) in enumerate(
        [(0.1, 9.0), (0.9, 8.0), (0.8, 7.0), (0.5, 6.0)]
    )]  # fmt: skip
    found = farthest_apart(rows)
    assert [(row["response"], proxy, gold) for row, proxy, gold in found] == [
        ("a0", 1.0, 4.0),
        ("a1", 2.0, 1.0),
        ("a2", 3.0, 2.0),
        ("a3", 4.0, 3.0),
    ]
    ties = [sample(i, "x", 0.5, i) for i in range(3)]
    assert {gold for _, _, gold in farthest_apart(ties)} == {2.0}
    assert farthest_apart([sample(0, "x", 0.1), sample(1, "x", None)]) == []


def test_what_models_wrote_and_runs_are_called_is_shown_and_never_run(tmp_path):
    folders = [
        studied_run(tmp_path / str(i), config=f"note: {json.dumps(NASTY + str(i))}\n")
        for i in (1, 2)
    ]
    for i, folder in enumerate(folders):
        config = yaml.safe_load((folder / "config.yaml").read_text()) | {"name": f"{NASTY[:27]}{i}"}
        (folder / "config.yaml").write_text(yaml.safe_dump(config))
        path = folder / "metrics.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        rows[7] |= {
            "guard/action": "<b>stop",
            "guard/reason": NASTY,
            f"starc{NASTY}": 1,
            f"phase/{NASTY}": 2.0,
        }
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    nasty = [{**sample(i, NASTY, 0.1 * i, -i), "prompt": NASTY} for i in range(PROMPTS)]
    again = make_run(
        tmp_path / "third",
        steps=[ppo_step(0, **{"eval/true_reward": 0.1, "eval/reward": 0.1})],
        samples={"before": nasty},
    )
    text = together(tmp_path, *folders, again)
    assert "<script" not in text and "<img" not in text and "<b>stop" not in text
    assert "\x00" not in text
    assert "&lt;script&gt;" in text and "&lt;b&gt;stop" in text


def test_runs_of_one_name_are_told_apart(tmp_path):
    one, two = studied_run(tmp_path / "x" / "run"), studied_run(tmp_path / "y" / "run")
    text = together(tmp_path, one, two)
    assert "x/run" in text and "y/run" in text


def test_runs_that_lack_things_still_have_their_place(tmp_path):
    text = together(
        tmp_path,
        studied_run(tmp_path / "untrue", true=False),
        studied_run(tmp_path / "killed", upto=18),
        make_run(tmp_path / "begun"),
        make_run(tmp_path / "once", steps=[ppo_step(0, **{"eval/true_reward": 0.4})]),
        make_run(tmp_path / "odd", steps=[ppo_step(1)], config="ppo: 3\nreward: x\npolicy: [1]\n"),
    )
    for words in (
        "untrue: no true reward was watched",
        "begun, odd: no evaluation yet",
        "once: no evaluation since",
        "killed: Step 18 of 40",
        "No step has been finished yet",
    ):
        assert words in text


def test_all_runs_without_anything_to_draw_make_a_page_too(tmp_path):
    text = together(tmp_path, make_run(tmp_path / "one"), make_run(tmp_path / "two"))
    assert "2 runs side by side" in text and "All settings are the same" in text


def test_a_guard_that_acted_is_quoted(tmp_path):
    quiet = studied_run(tmp_path / "quiet", **{"guard/action": "none"})
    assert "The guard" not in together(tmp_path, quiet, studied_run(tmp_path / "other"))
    loud = studied_run(
        tmp_path / "loud", **{"guard/action": "stop", "guard/reason": "it fell twice"}
    )
    text = together(tmp_path, quiet, loud)
    assert "it fell twice" in text and "and 21 more" in text


def test_several_runs_go_into_one_page_here_and_other_jobs_are_left_out(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        studied_run(tmp_path / "runs" / name)
    make_run(tmp_path / "runs" / "rm", "rm")
    (tmp_path / "runs" / "notes").mkdir()
    for job in ("serve", "overoptimization"):  # the second is a study that has no figures yet
        (tmp_path / "runs" / job).mkdir()
        (tmp_path / "runs" / job / "config.yaml").write_text(f"job: {job}\n")
    (tmp_path / "runs" / "studied").mkdir()
    (tmp_path / "runs" / "studied" / "overoptimization.json").write_text("{}")
    for asked in (["runs"], ["runs/*"]):
        assert report.main(asked) == 0
        assert capsys.readouterr().out.split() == ["report.html"]
        text = (tmp_path / "report.html").read_text()
        assert "2 runs side by side" in text
        assert "rm is left out: reward model training" in text
        assert "studied is left out: an over-optimisation study" in text
        for job in ("serve", "overoptimization"):
            assert f"{job} is left out: a folder of `{job}`" in text
        (tmp_path / "report.html").unlink()
    assert report.main(["runs/one", "runs/two", "runs/rm", "runs/one"]) == 0
    assert "2 runs side by side" in (tmp_path / "report.html").read_text()


def test_one_run_keeps_its_page_in_its_folder_unless_told_otherwise(tmp_path, capsys):
    run = studied_run(tmp_path / "runs" / "one")
    assert report.main([str(tmp_path / "runs")]) == 0
    assert capsys.readouterr().out.split() == [str(run / "report.html")]
    elsewhere = tmp_path / "page.html"
    assert report.main([str(run), "--output", str(elsewhere)]) == 0
    assert "Over-optimisation" in elsewhere.read_text()


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        (["rm", "rm2"], "none of these is a PPO run"),
        (["one", "two", "--output", "."], "a folder, not a file"),
        (["one", "two", "--output", "no/page.html"], "no such folder to write to"),
        (["empty"], "nor a folder of runs"),
        (["no*"], "no such folder"),
        (["judged", "--output", "x.html"], "goes into its folder"),
        (["served"], "a folder of `serve` without results"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys, monkeypatch, asked, words):
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        studied_run(tmp_path / name)
    for name in ("rm", "rm2"):
        make_run(tmp_path / name, "rm")
    (tmp_path / "empty").mkdir()
    (tmp_path / "judged").mkdir()
    (tmp_path / "judged" / "evaluation.json").write_text("{}")
    (tmp_path / "served").mkdir()
    (tmp_path / "served" / "config.yaml").write_text("job: serve\n")
    assert report.main(asked) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and len(shown.err.splitlines()) == 1 and words in shown.err


def test_the_page_of_the_run_in_this_folder_is_not_written_over(tmp_path, capsys, monkeypatch):
    one, two = studied_run(tmp_path / "one"), studied_run(tmp_path / "two")
    monkeypatch.chdir(one)
    assert report.main([".", str(two)]) == 2
    assert "--output" in capsys.readouterr().err

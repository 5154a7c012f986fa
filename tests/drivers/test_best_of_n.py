"""Shards of a best-of-n run, and its figures against all choices of n answers, one by one."""

import itertools
import json
import math

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from grm_ray.config.best_of_n import BestOfNJob
from grm_ray.config.errors import ConfigError
from grm_ray.data.tables import ROLLOUTS, SCORES
from grm_ray.drivers.best_of_n import shards
from grm_ray.drivers.best_of_n.ensembles import check_ensembles
from grm_ray.drivers.best_of_n.figures import figures
from grm_ray.drivers.best_of_n.run import MADE_WITH, check_resumable
from grm_ray.drivers.best_of_n.shards import LeftOut, Shard
from grm_ray.reporting.best_of_n import html, write_best_of_n
from grm_ray.runtime.ledger import seed
from grm_ray.study.starc import starc_distance

SAMPLES = 5
TEXTS = ["one two three", "- an item\n- another", "a b c d a b c d", "1. first", ""]


def config(**changes):
    return BestOfNJob.model_validate(
        {
            "name": "bon",
            "policy": {"path": "policy"},
            "data": {"prompts": {"path": "prompts.jsonl"}},
            "rollout": {"samples_per_prompt": SAMPLES},
            "proxies": {"good": "good", "bad": "bad"},
            "true_reward": "demo_judge",
            "betas": [1.0, 0.3],
            **changes,
        }
    )


def made(folder, number, prompts, rng, left_out=()):
    """A finished shard of random scores, written as a run does; `(P, N)` of each column."""
    ids = [f"p{number}x{i}" for i in range(prompts)]
    shard = Shard(number, None, ids, list(left_out), SAMPLES, 0)
    true = rng.normal(size=(prompts, SAMPLES)).astype(np.float32)
    columns = {
        "score_good": true + rng.normal(size=true.shape).astype(np.float32),
        "score_bad": rng.integers(0, 3, size=true.shape).astype(np.float32),  # with ties
        "true_reward": true,
    }
    written = [batch(shard, i) for i in rng.permutation(prompts)]
    for rollouts in written:
        uids = rollouts["uid"].to_pylist()
        assert shard.generated(None, uids)
        row = ids.index(uids[0].split(":")[0])
        scored = {"uid": uids, **{k: v[row] for k, v in columns.items()}}
        shard.scored(pa.table({**scored, "refused": pa.nulls(SAMPLES, pa.string())}))
    assert shard.complete
    (folder / "samples").mkdir(exist_ok=True)
    shard.write(folder, written)
    return columns


def batch(shard, row):
    """All answers to one prompt, as a rollout worker sends them."""
    uids = [name for at, name, _ in shard.wanted() if at == row]
    return pa.Table.from_pylist(
        [
            {
                "uid": name,
                "prompt": f"prompt {row}",
                "messages": "[]",
                "response": TEXTS[i],
                "prompt_tokens": [1, 2],
                "response_tokens": list(range(i + 1)),
                "engine_logprobs": [0.0] * (i + 1),
                "finished": True,
                "incarnation": 0,
                "version": 0,
            }
            for i, name in enumerate(uids)
        ],
        ROLLOUTS,
    )


def brute_force(proxy_N, gold_N, n):
    """Mean gold of the highest proxy over every choice of n answers; equals are as likely."""
    found = []
    for chosen in itertools.combinations(range(len(proxy_N)), n):
        best = [i for i in chosen if proxy_N[i] == max(proxy_N[j] for j in chosen)]
        found.append(np.mean([gold_N[i] for i in best]))
    return np.mean(found)


@pytest.fixture
def run(tmp_path):
    """`(folder, columns)` of three shards, one of them without a usable prompt."""
    rng = np.random.default_rng(0)
    first, _, third = (
        made(tmp_path, 0, 4, rng),
        made(tmp_path, 1, 0, rng, left_out=[("long", "too long")]),
        made(tmp_path, 2, 3, rng),
    )
    return tmp_path, {name: np.concatenate([first[name], third[name]]) for name in first}


def test_figures_are_those_of_all_choices(run):
    folder, columns = run
    left_out = LeftOut(folder / "quarantine.jsonl")
    found = figures(config(ns=[2, 3]), shards.finished(folder), left_out)
    assert found["sizes"] == [1, 2, 3, 5] and found["prompts"] == 7
    assert found["kl"][1] == pytest.approx(math.log(2) - 0.5)
    true = columns["true_reward"].astype(float)
    habits = {
        "list_rate": np.tile([0, 1, 0, 1, 0], (7, 1)),
        "repetition": np.tile([0, 0, 1 - 4 / 5, 0, 0], (7, 1)),
        "tokens": np.tile([1, 2, 3, 4, 5], (7, 1)),
    }
    for name, proxy in found["proxies"].items():
        scores = columns[f"score_{name}"].astype(float)
        for i, n in enumerate(found["sizes"]):

            def expected(gold, n=n, scores=scores):
                return np.mean([brute_force(*row, n) for row in zip(scores, gold, strict=True)])

            assert proxy["true"][i]["mean"] == pytest.approx(expected(true))
            assert proxy["proxy"][i]["mean"] == pytest.approx(expected(scores))
            for habit, values in habits.items():
                assert proxy["habits"][habit][i] == pytest.approx(expected(values))
        assert proxy["starc"] == pytest.approx(starc_distance(scores, true), abs=1e-7)
        spread = (scores - scores.mean(axis=1, keepdims=True)).std()
        assert proxy["spread"] == pytest.approx(spread)
        for soft, beta in zip(proxy["soft"], (1.0, 0.3), strict=True):
            weights = np.exp(scores / (beta * spread))
            weights /= weights.sum(axis=1, keepdims=True)
            assert soft["true"]["mean"] == pytest.approx((weights * true).sum(axis=1).mean())
            kl = (weights * np.log(weights * SAMPLES)).sum(axis=1).mean()
            assert soft["kl"] == pytest.approx(kl)
        means = [at["mean"] for at in proxy["true"]]
        kept = (means[-1] - means[0]) / (max(means) - means[0])
        assert proxy["kept"]["share"] == pytest.approx(kept)
        assert proxy["gain"]["mean"] == pytest.approx(means[-1] - means[0])
    assert found["oracle"]["true"][-1]["mean"] == pytest.approx(true.max(axis=1).mean())
    assert found["proxies"]["good"]["versus"] is None
    assert found["left_out"] == {"too long": 1}
    assert json.loads((folder / "quarantine.jsonl").read_text())["row"] == "long"
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_prompt_without_all_scores_counts_for_no_proxy(run):
    folder, columns = run
    file = shards.path(folder, 0)
    table = pq.read_table(file)
    scores = table["score_bad"].to_numpy().copy()
    scores[SAMPLES + 2] = np.nan  # the second prompt's third answer
    why = [None] * len(scores)
    why[SAMPLES + 2] = "ValueError: no float"
    for name, values in (("score_bad", scores), ("refused", why)):
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    pq.write_table(table, file)
    left_out = LeftOut(folder / "quarantine.jsonl")
    found = figures(config(), shards.finished(folder), left_out)
    assert found["prompts"] == 6
    kept = np.delete(columns["true_reward"], 1, axis=0)
    assert found["proxies"]["good"]["true"][0]["mean"] == pytest.approx(kept.mean())
    assert found["left_out"] == {"an answer is not scored": 1, "too long": 1}
    line = json.loads((folder / "quarantine.jsonl").read_text().splitlines()[0])
    assert line["row"] == "p0x1" and line["reason"].endswith("not scored: ValueError: no float")


def test_no_prompt_is_left(tmp_path):
    made(tmp_path, 0, 0, np.random.default_rng(0), left_out=[("a", "too long"), ("b", "too long")])
    left_out = LeftOut(tmp_path / "quarantine.jsonl")
    with pytest.raises(ConfigError, match="2 too long"):
        figures(config(), shards.finished(tmp_path), left_out)


def test_a_shards_rows_have_an_order_of_their_own(run):
    folder, _ = run
    said = pq.read_table(shards.path(folder, 2))
    assert said["uid"].to_pylist() == [f"p2x{i}:0:{k}" for i in range(3) for k in range(SAMPLES)]
    assert said["prompt"].to_pylist()[::SAMPLES] == ["prompt 0", "prompt 1", "prompt 2"]
    assert said["tokens"].to_pylist()[:SAMPLES] == [1, 2, 3, 4, 5]


def test_a_shard_asks_for_what_it_lacks():
    shard = Shard(0, None, ["a", "b"], [], SAMPLES, 3)
    wanted = shard.wanted()
    assert [row for row, _, _ in wanted] == [0] * SAMPLES + [1] * SAMPLES
    assert wanted[0] == (0, "a:0:0", seed("a:0:0", 3))
    uids = [name for _, name, _ in wanted[:SAMPLES]]
    assert shard.generated("batch", uids) and not shard.generated("again", uids)
    assert shard.batches == ["batch"] and shard.wanted() == wanted[SAMPLES:]
    assert not shard.complete


def prompts_file(folder, count):
    path = folder / "prompts.jsonl"
    lines = [json.dumps({"prompt": f"question {i}"}) for i in range(count)]
    path.write_text("\n".join([*lines, lines[0], "no json"]) + "\n")
    return str(path)


def numbered(job, folder):
    left_out = LeftOut(folder / "quarantine.jsonl")
    found = list(shards.numbered(job, left_out))
    return [n for n, _ in found], [[p.prompt_id for p in some] for _, some in found], left_out


def all_of(lists):
    return list(itertools.chain.from_iterable(lists))


def test_prompts_fall_into_the_same_shards_every_time(tmp_path):
    source = {"path": prompts_file(tmp_path, 10)}
    job = config(data={"prompts": source}, prompts_per_shard=4)
    numbers, ids, left_out = numbered(job, tmp_path)
    assert numbers == [0, 1, 2] and [len(some) for some in ids] == [4, 4, 2]
    assert left_out.counts == {"duplicate": 1, "not valid JSON": 1}
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == 2
    assert numbered(job, tmp_path)[1] == ids


def test_a_limit_draws_prompts(tmp_path):
    source = {"path": prompts_file(tmp_path, 40)}
    everything = all_of(numbered(config(data={"prompts": source}), tmp_path)[1])

    def cut(seed, **changes):
        job = config(data={"prompts": {**source, "limit": 6, **changes}}, seed=seed)
        return all_of(numbered(job, tmp_path)[1])

    assert cut(0, shuffle=False) == everything[:6]
    drawn = cut(0)
    assert len(set(drawn)) == 6 and set(drawn) <= set(everything) and drawn != everything[:6]
    assert drawn == cut(0) and drawn != cut(1)


def test_the_page_names_what_it_shows(run):
    folder, _ = run
    left_out = LeftOut(folder / "quarantine.jsonl")
    found = figures(config(), shards.finished(folder), left_out)
    text = html({**found, "name": "<b>bold</b>"})
    assert "<b>bold" not in text and "&lt;b&gt;bold" in text
    for words in ("good", "bad", "STARC", "Soft best-of-n", "7 prompts × 5 answers"):
        assert words in text
    assert "nan" not in text.lower().split("</style>")[1]
    assert write_best_of_n(found, folder).read_text().startswith("<!doctype html>")


def test_one_prompt_and_a_proxy_that_tells_nothing_apart(tmp_path):
    made(tmp_path, 0, 1, np.random.default_rng(0))
    file = shards.path(tmp_path, 0)
    table = pq.read_table(file)
    at = table.column_names.index("score_bad")
    same = pa.array(np.ones(SAMPLES, np.float32))
    pq.write_table(table.set_column(at, "score_bad", same), file)
    job = config(betas=[1.0])
    found = figures(job, shards.finished(tmp_path), LeftOut(tmp_path / "quarantine.jsonl"))
    bad = found["proxies"]["bad"]
    assert bad["spread"] == 0 and bad["starc"] == 0.5 and bad["soft"][0]["kl"] == 0
    assert bad["kept"]["share"] is None and bad["true"][0]["low"] is None
    assert "–" in html(found)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ns": [2, 9]}, "ns: 9 is more than the 5 answers"),
        ({"policy": {"path": "p", "lora": {}}}, "nothing is trained here"),
        ({"proxies": {}}, "at least 1"),
    ],
)
def test_a_config_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_sizes_go_from_1_to_all_answers():
    assert config().sizes == [1, 2, 4, 5]
    assert config(rollout={"samples_per_prompt": 8}).sizes == [1, 2, 4, 8]
    assert config(ns=[3]).sizes == [1, 3, 5]


def test_shards_of_another_run_are_refused(tmp_path):
    job = config(runs=str(tmp_path))
    with pytest.raises(ConfigError, match="contains no run"):
        check_resumable(job, {})
    (tmp_path / "bon").mkdir()
    saved = {"config": job.model_dump(mode="json"), "identity": {"model of score_good": "abc"}}
    (tmp_path / "bon" / MADE_WITH).write_text(json.dumps(saved))
    check_resumable(job, {"model of score_good": "abc"})
    check_resumable(config(runs=str(tmp_path), betas=[2.0], ns=[3]), {})
    with pytest.raises(ConfigError, match="a different model of score_good"):
        check_resumable(job, {"model of score_good": "def"})
    for changes in ({"seed": 1}, {"prompts_per_shard": 5}, {"rollout": {"samples_per_prompt": 6}}):
        with pytest.raises(ConfigError, match=f"would continue another run: {next(iter(changes))}"):
            check_resumable(config(runs=str(tmp_path), **changes), {})


def test_a_scorers_answer_has_a_column_a_proxy():
    scores = [{"uid": "a", "scores": [1.0, 2.0], "true_reward": 0.5}]
    scores.append({"uid": "b", "scores": [3.0, math.nan], "true_reward": 0.25})
    found = shards.by_proxy(pa.Table.from_pylist(scores, schema=SCORES), ["x", "y"])
    assert found.column_names == ["uid", "score_x", "score_y", "true_reward", "refused"]
    assert found["score_x"].to_pylist() == [1.0, 3.0] and found["score_y"][0].as_py() == 2.0
    assert math.isnan(found["score_y"][1].as_py()) and found["score_y"].type == pa.float32()


def test_an_ensemble_chooses_by_what_its_members_say_on_one_scale(run):
    folder, columns = run
    both = {"both": {"members": ["good", "bad"], "aggregate": "wco"}}
    left_out = LeftOut(folder / "quarantine.jsonl")
    found = figures(config(ensembles=both, ns=[2]), shards.finished(folder), left_out)
    scores = [columns[f"score_{name}"].astype(float) for name in ("good", "bad")]
    joined = np.min([(s - s.mean()) / s.std() for s in scores], axis=0)
    true = columns["true_reward"].astype(float)
    mean = found["proxies"]["both"]["true"][1]["mean"]
    expected = [brute_force(*row, 2) for row in zip(joined, true, strict=True)]
    assert mean == pytest.approx(np.mean(expected), abs=1e-6)
    assert found["proxies"]["both"]["path"] == "wco of good, bad"
    assert "both" in html({**found, "name": "bon"})


def test_a_member_without_an_opinion_is_refused(run):
    folder, _ = run
    for file in shards.finished(folder):
        table = pq.read_table(file)
        if not len(table):
            continue  # a shard whose prompts were all left out
        at = table.column_names.index("score_bad")
        same = pa.array(np.ones(len(table), np.float32))
        pq.write_table(table.set_column(at, "score_bad", same), file)
    both = {"both": {"members": ["good", "bad"]}}
    with pytest.raises(ConfigError, match=r"proxies\.bad: it gives all answers the same score"):
        figures(config(ensembles=both), shards.finished(folder), LeftOut(folder / "q.jsonl"))


@pytest.mark.parametrize(
    ("ensemble", "words"),
    [
        ({"good": {"members": ["good", "bad"]}}, "'good' is already the name of a proxy"),
        ({"both": {"members": ["good", "ugly"]}}, r"\['ugly'\] are not in proxies"),
        ({"both": {"members": ["good", "good"]}}, "a proxy is listed twice"),
    ],
)
def test_ensembles_are_of_proxies(ensemble, words):
    with pytest.raises(ValueError, match=words):
        config(ensembles=ensemble)


@pytest.mark.parametrize(
    ("aggregate", "words"),
    [
        ("minimum", "ensembles.both.aggregate.*minimum|unknown aggregate 'minimum'"),
        ({"name": "uwo", "wait": 1}, r"ensembles\.both\.aggregate \(uwo\): no parameter 'wait'"),
        ({"name": "cvar", "tau": 0}, r"ensembles\.both\.aggregate: tau must be above 0"),
    ],
)
def test_an_ensemble_is_checked_beforehand(aggregate, words):
    both = {"both": {"members": ["good", "bad"], "aggregate": aggregate}}
    with pytest.raises(ConfigError, match=words):
        check_ensembles(config(ensembles=both))

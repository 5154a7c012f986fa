"""The driver's numbers of a set: no row is lost between blocks and ranks."""

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.drivers.checks import jobs as job_checks
from grm_ray.drivers.reward_model import rows as reward_rows
from grm_ray.drivers.reward_model.rows import Rows
from grm_ray.drivers.run_folder import check_same_run, hold


def test_blocks_hold_every_row_once(monkeypatch):
    monkeypatch.setattr(reward_rows, "ROWS_PER_CALL", 4)
    rows = Rows(lengths=list(range(1, 20)))
    blocks = list(rows.in_blocks(range(19), 3))
    assert all(len(shares) == 3 and sum(map(len, shares)) <= 12 for shares in blocks)
    assert sorted(row for shares in blocks for share in shares for row in share) == list(range(19))


def test_pieces_add_up():
    rows = Rows()
    for source, uids in ((0, ["a:0", "b:1"]), (1, ["c:2"])):
        rows.add(
            f"table {source}",
            {
                "uids": uids,
                "lengths": [5] * len(uids),
                "weights": [1.0] * len(uids),
                "truncated": 1,
                "source": source,
            },
        )
    assert rows.pieces == (["table 0", "table 1"], [2, 1])
    assert rows.by_source == {0: 2, 1: 1} and rows.truncated == 2


def test_a_folder_is_held_once_a_process(tmp_path):
    hold(tmp_path / "run")
    hold(tmp_path / "run")
    assert (tmp_path / ".run.lock").exists()


def job(tmp_path, **changes):
    given = {
        "name": "rm",
        "runs": str(tmp_path),
        "model": {"path": "smollm2-135m-instruct"},
        "data": {"train": {"path": "demo"}},
    }
    return RewardModelJob(**{**given, **changes})


def test_a_checkpoint_without_a_key_that_came_later_is_the_same_run(tmp_path):
    saved = job(tmp_path).model_dump(mode="json")
    del saved["new_head"]
    check_same_run(saved, job(tmp_path))
    with pytest.raises(ConfigError, match="new_head: False in the checkpoint, True now"):
        check_same_run(saved, job(tmp_path, new_head=True))


def test_a_run_does_not_start_from_the_folder_that_it_moves_aside(tmp_path):
    inside = job(tmp_path, model={"path": f"{tmp_path}/rm/model"})
    with pytest.raises(ConfigError, match="model.path: .* lies in this run's own folder"):
        job_checks._not_inside(inside, {"model.path": inside.model.path})
    job_checks._not_inside(inside, {"model.path": f"{tmp_path}/rm2/model", "other": "smollm2"})

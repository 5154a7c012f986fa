"""The driver's numbers of a set: no row is lost between blocks and ranks."""

from grm_ray.drivers import reward_rows
from grm_ray.drivers.reward_rows import Rows
from grm_ray.drivers.run_folder import hold


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

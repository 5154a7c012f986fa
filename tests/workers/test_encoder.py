"""What a loss that reads margins asks of the data is kept, and what is left out has its reason."""

import pyarrow as pa

from grm_ray.data.tables import PAIRS
from grm_ray.workers.encoder import Margins


def table(*margins):
    rows = [
        {"uid": f"p:{n}", "prompt_tokens": [1], "chosen_tokens": [2], "rejected_tokens": [3]}
        | {"margin": margin, "smoothing": None}
        for n, margin in enumerate(margins)
    ]
    return pa.Table.from_pylist(rows, PAIRS)


def test_a_pair_without_a_margin_is_left_out():
    kept, left_out = Margins(None, weights=False).of(table(1.0, None, -2.0))
    assert kept["margin"].to_pylist() == [1.0, -2.0] and left_out == [("p:1", "no margin")]


def test_or_gets_the_margin_that_the_config_names():
    kept, left_out = Margins(0.5, weights=False).of(table(1.0, None))
    assert kept["margin"].to_pylist() == [1.0, 0.5] and left_out == []


def test_a_negative_margin_cannot_weigh():
    kept, left_out = Margins(None, weights=True).of(table(1.0, -0.5, 0.0))
    assert kept["margin"].to_pylist() == [1.0, 0.0]
    assert [uid for uid, _ in left_out] == ["p:1"]

"""However the rows are split over ranks and micro-batches, the update is the same."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

RANK = Path(__file__).parent / "one_rank.py"


def train(splits, folder):
    """Final weights after two updates; `splits[rank]` is that rank's list of micro-batches."""
    from grm_ray.training.engine import address

    _, port = address()
    ranks = []
    for rank, batches in enumerate(splits):
        given = json.dumps([rank, len(splits), "127.0.0.1", port, batches, str(folder)])
        ranks.append(
            subprocess.Popen(
                [sys.executable, str(RANK), given],
                cwd=ROOT,
                env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(Path.home())},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
    outputs = [rank.communicate(timeout=400)[0] for rank in ranks]
    assert all(rank.returncode == 0 for rank in ranks), outputs
    return json.loads(outputs[0].strip().splitlines()[-1])


@pytest.mark.timeout(900)
def test_any_split_gives_the_same_update(tmp_path):
    whole = train([[[0, 1, 2, 3, 4]]], tmp_path)
    uneven = train([[[0, 1], [2], [3]], [[4]]], tmp_path)
    idle = train([[[0, 1, 2], [3, 4]], []], tmp_path)
    assert whole == pytest.approx(uneven, abs=1e-6)
    assert whole == pytest.approx(idle, abs=1e-6)
    assert whole != pytest.approx([0.5] * len(whole), abs=1e-3), "nothing was learned"

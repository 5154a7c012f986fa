"""A single update that is left out is a warning, several in a row are the end."""

import pytest

from grm_ray.config.errors import RunStopped
from grm_ray.drivers.updates import Updates


def figures(in_a_row=0, tokens=64, skipped=None):
    skipped = min(in_a_row, 1) if skipped is None else skipped
    return {
        "skipped_in_a_row": in_a_row,
        "skipped_updates": skipped,
        "micro_batch_tokens": tokens,
    }


def test_updates_that_went_well_need_no_words():
    metrics = figures()
    assert Updates("training.optimizer", 64).after(1, metrics) == []
    assert metrics == {"skipped_updates": 0, "micro_batch_tokens": 64}
    assert Updates("ppo.optimizer", 64).after(1, {"rows_learned": 0}) == []


def test_smaller_micro_batches_are_told_once():
    updates = Updates("training.optimizer", 64)
    (line,) = updates.after(3, figures(tokens=16))
    assert "step 3: out of memory" in line and "16 tokens" in line
    assert updates.after(4, figures(tokens=16)) == []
    assert len(updates.after(5, figures(tokens=8))) == 1


def test_the_third_update_in_a_row_that_is_no_number_ends_the_run():
    updates = Updates("ppo.optimizer", 64)
    (line,) = updates.after(1, figures(1))
    assert "warning: step 1: loss or gradient was not finite in 1 of" in line
    assert len(updates.after(2, figures(2))) == 1
    assert len(updates.after(3, figures(0, skipped=2))) == 1, "two of a step, then a good one"
    with pytest.raises(RunStopped, match=r"step 4: .* last 3 .* ppo.optimizer.learning_rate"):
        updates.after(4, figures(3))

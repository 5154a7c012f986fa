"""After a rank of the training group died: a new group, the last checkpoint, the same rows.

What was done after the checkpoint is done again; rows are named, and drawn by their names, so that
the ledger has each of them once all the same.
"""

from __future__ import annotations

from collections.abc import Callable

from grm_ray.drivers.groups import RankDied

# Deaths without a step beyond the furthest so far after which the run ends.
MOST = 3


def keep_going(
    work: Callable[[], None],
    recover: Callable[[], None],
    step: Callable[[], int],
    say: Callable[[str], None],
) -> None:
    """Do `work` to its end; when a rank dies, `recover` and do it again from where that leads.

    Args:
        step: how far the run has come.
        say: told of every death, in one line.

    Raises:
        RankDied: the last of `MOST` deaths that came without progress.
    """
    furthest, deaths, died = step(), 0, False
    while True:
        try:
            if died:
                recover()
                died = False
            work()
            return
        except RankDied as error:
            deaths = 1 if step() > furthest else deaths + 1
            furthest = max(furthest, step())
            if deaths >= MOST:
                raise
            say(f"{str(error).splitlines()[0]}; a new group continues from the last checkpoint")
            died = True

import io

from grm_ray.runtime.terminal_table import PPO_COLUMNS, RM_COLUMNS, LiveTable, fit

STEP = {
    "step": 3,
    "reward": 0.1234,
    "true_reward": None,
    "objective/kl": 1.5,
    "response_length": 42.0,
    "tokens_per_second": 431.7,
    "phase/generate": 8.0,
    "phase/score": 1.0,
    "phase/learn": 4.25,
    "phase/sync": 0.5,
}


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_a_log_file_gets_one_header_and_aligned_lines_and_nothing_transient():
    stream = io.StringIO()
    table = LiveTable(PPO_COLUMNS, stream)
    table.status("generate", 1, 32)
    table.row(STEP)
    table.status("learn")
    table.row({**STEP, "step": 4, "objective/kl": 123456.0})
    table.close()
    header, *rows = stream.getvalue().splitlines()
    assert "\r" not in stream.getvalue() and len(rows) == 2
    assert len({len(line) for line in [header, *rows]}) == 1 and len(header) <= 80
    names = "step reward true KL length tok/s s/step gen score learn sync"
    assert " ".join(header.split()) == names
    assert " ".join(rows[0].split()) == "3 0.123 - 1.50 42.0 432 13.8 8.0 1.0 4.2 0.5"


def test_a_terminal_gets_a_status_that_the_next_line_overwrites():
    stream = Terminal()
    table = LiveTable(PPO_COLUMNS, stream)
    table.status("generate", 12, 32)
    assert stream.getvalue() == "… generate 12/32 rows"
    table.row(STEP)
    status, shown = stream.getvalue().split("\r", 1)
    blank, shown = shown.split("\r", 1)
    assert set(blank) == {" "} and len(blank) >= len(status)
    assert shown.startswith("step")


def test_held_out_results_have_a_line_of_their_own_with_their_interval():
    stream = io.StringIO()
    LiveTable(PPO_COLUMNS, stream).row(
        {
            "step": 0,
            "phase/evaluate": 5.0,
            "eval/true_reward": 0.5,
            "eval/true_reward_low": 0.4,
            "eval/true_reward_high": 0.6,
            "eval/reward": -0.25,
        }
    )
    _, line = stream.getvalue().splitlines()
    assert line == "   0  held-out: true reward 0.500 (0.400 to 0.600), reward -0.250"


def test_reward_model_columns_show_small_rates():
    stream = io.StringIO()
    LiveTable(RM_COLUMNS, stream).row({"step": 1, "loss": 0.6931, "lr": 2e-5, "accuracy": 0.5})
    assert stream.getvalue().splitlines()[1].split()[:6] == [
        "1", "0.6931", "-", "-", "0.500", "2.0e-05",
    ]  # fmt: skip


def test_a_number_never_outgrows_its_column():
    for value in (0.0, -0.5, 1e-9, 99999.94, -123456.0, 1e30, True, float("nan")):
        for digits, width in ((0, 5), (1, 6), (3, 7)):
            assert len(fit(value, digits, width)) <= width

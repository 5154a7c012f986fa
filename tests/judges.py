"""True rewards for tests, named in configs as `tests.judges:<function>`."""


def shorter(prompt: str, response: str) -> float:
    return 1.0 / (1 + len(response))


def broken_stage(rewards_B):
    return rewards_B * float("nan")


def longer(prompt: str, response: str) -> float:
    return len(response) / 100


def moody(prompt: str, response: str) -> float:
    """As `shorter`, but for some answers, of which it says nothing."""
    odd = {"inf": float("inf"), "nan": float("nan"), "none": None}
    if response == "raises":
        raise KeyError("no such word")
    return odd[response] if response in odd else shorter(prompt, response)

"""True rewards for tests, named in configs as `tests.judges:<function>`."""


def shorter(prompt: str, response: str) -> float:
    return 1.0 / (1 + len(response))


def broken_stage(rewards_B):
    return rewards_B * float("nan")


def longer(prompt: str, response: str) -> float:
    return len(response) / 100

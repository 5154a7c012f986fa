"""Every registered loss can be imported, and asks only for what the trainer can bring."""

from __future__ import annotations

import pytest

from grm_ray.config.errors import ConfigError
from grm_ray.config.registry import REGISTRY, check_parameters, resolve, wants

PREFERENCE = {"chosen_B", "rejected_B", "margin_B", "smoothing_B", "predicted_BA", "labels_BA"}
REGULARIZER = {
    f"{answer}_{what}_B" for answer in ("chosen", "rejected") for what in ("logp", "ref_logp")
} | {"chosen_tokens_B", "rejected_tokens_B", "beta"}


@pytest.mark.parametrize(
    ("kind", "vocabulary"), [("preference loss", PREFERENCE), ("regularizer", REGULARIZER)]
)
def test_every_loss_asks_only_for_what_the_trainer_can_bring(
    kind: str, vocabulary: set[str]
) -> None:
    for name in REGISTRY[kind]:
        asked = wants(resolve(kind, name))
        assert asked and asked <= vocabulary, name


def test_a_name_means_the_function_of_that_name() -> None:
    for kind in ("preference loss", "regularizer"):
        for name in REGISTRY[kind]:
            assert resolve(kind, name).__name__ == name


def test_a_function_wants_what_it_takes_by_keyword() -> None:
    def own(first_only, /, chosen_B, beta=0.1, *rest, margin_B=None, **more): ...

    assert wants(own) == {"chosen_B", "beta", "margin_B"}
    assert wants(own, optional=False) == {"chosen_B"}
    assert wants(resolve("preference loss", "bradley_terry")) == {
        "chosen_B",
        "rejected_B",
        "smoothing_B",
    }
    assert wants(resolve("regularizer", "nll")) == {"chosen_logp_B"}


def test_true_is_no_number_among_parameters() -> None:
    def own(scores_KB, weight: float | None = None, ddof: int = 0, strict: bool = False, any=1): ...

    check_parameters("here", "aggregate", own, {"strict": True, "any": True, "weight": 1})
    for name in ("weight", "ddof"):
        with pytest.raises(ConfigError, match=f"here: {name}: expected a number, got true"):
            check_parameters("here", "aggregate", own, {name: True})
    with pytest.raises(ConfigError, match="here: weight: expected a number"):
        check_parameters("here", "aggregate", resolve("aggregate", "uwo"), {"weight": True})

"""What the reward-model driver knows of its rows: numbers and names, never tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from grm_ray.config.errors import ConfigError
from grm_ray.config.reward_model import RewardModelJob
from grm_ray.data.packing import split_by_tokens
from grm_ray.data.sources import Quarantine
from grm_ray.drivers.groups import fetch
from grm_ray.training.reward_loss import RewardLoss

# Rows of one call to a rank: a whole set would be one table there, and one wait without a word.
ROWS_PER_CALL = 2048


@dataclass
class Rows:
    """A set: where its tables lie, and numbers a row."""

    refs: list[Any] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    uids: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    weights: list[float] = field(default_factory=list)
    truncated: int = 0
    by_source: dict[int, int] = field(default_factory=dict)

    def add(self, ref: Any, metadata: dict[str, Any]) -> None:
        self.refs.append(ref)
        self.counts.append(len(metadata["uids"]))
        self.uids += metadata["uids"]
        self.lengths += metadata["lengths"]
        self.weights += metadata["weights"]
        self.truncated += metadata["truncated"]
        source = metadata["source"]
        self.by_source[source] = self.by_source.get(source, 0) + len(metadata["uids"])

    @property
    def pieces(self) -> tuple[list[Any], list[int]]:
        return self.refs, self.counts

    def in_blocks(self, rows: Sequence[int], ranks: int) -> Iterator[list[list[int]]]:
        """`rows` in blocks, each split over the ranks by tokens."""
        for start in range(0, len(rows), ROWS_PER_CALL * ranks):
            block = rows[start : start + ROWS_PER_CALL * ranks]
            shares = split_by_tokens([self.lengths[row] for row in block], ranks)
            yield [[block[i] for i in share] for share in shares]


@dataclass
class Read:
    """All sets of a run, what was left out, and a name for what training will see."""

    sets: dict[str, Rows]
    fingerprint: str
    left_out: dict[str, int]  # reason -> rows, of all sources
    by_source: list[dict[str, int]]  # the same of each training source

    def in_words(self, config: RewardModelJob) -> str:
        held = ", ".join(f"{len(f.uids)} {n}" for n, f in self.sets.items() if n != "train")
        shown = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items())
        cut = sum(found.truncated for found in self.sets.values())
        rows = "graded answers" if config.head.attributes else "training pairs"
        return (
            f"{len(self.sets['train'].uids)} {rows}; to evaluate on: {held}"
            + (f"; left out: {shown} (quarantine.jsonl)" if shown else "")
            + (f"; {cut} cut to data.max_length ({config.data.truncation})" if cut else "")
        )


def start_reading(config: RewardModelJob, loss: RewardLoss, path: str, log: Path) -> Any:
    """The encoder's stream of tables and metadata."""
    from grm_ray.workers.encoder import Margins, start_encoder

    encoder = start_encoder(path, config.model.trust_remote_code, str(log))
    margins = Margins(config.loss.missing_margin, loss.weighs_by_margin)
    return encoder.pairs.options(num_returns="streaming").remote(
        config.data.model_dump(mode="json"),
        config.new_head,
        config.seed,
        tuple(config.head.attributes),
        margins if loss.needs_margin else None,
    )


def read(config: RewardModelJob, stream: Any, quarantine_file: Path) -> Read:
    """Take the encoder's pieces, and write down what was left out.

    Raises:
        ConfigError: a source cannot be used, or no row of a set fits.
    """
    data, quarantine = config.data, Quarantine()
    pieces = _pieces(stream)
    _, plan = next(pieces)
    quarantine.rows = plan["quarantine"]
    by_source = [dict(reasons) for reasons in plan["left_out"]]
    sets = {name: Rows() for name in ("train", *plan["sets"])}
    for ref, metadata in pieces:
        name, number = metadata["set"], metadata["source"]
        sets[name].add(ref, metadata)
        source = data.eval.get(name, data.train[number])
        for uid, reason in metadata["left_out"]:
            quarantine.add(source.path, 0, reason, uid)
            if name == "train":
                by_source[number][reason] = by_source[number].get(reason, 0) + 1
    quarantine.write(quarantine_file)
    left_out = quarantine.counts()
    for name, found in sets.items():
        if not found.uids:
            reasons = ", ".join(f"{count} {reason}" for reason, count in left_out.items())
            raise ConfigError(
                f"no row of '{name}' is left: {reasons or 'it is empty'} "
                f"(data.max_length: {data.max_length}; see {quarantine_file})"
            )
    return Read(sets, plan["fingerprint"], left_out, by_source)


def _pieces(stream: Any) -> Iterator[tuple[Any, dict[str, Any]]]:
    """(reference to a table, its metadata) as the encoder sends them.

    Raises:
        ConfigError: the encoder's own.
    """
    for ref in stream:
        try:
            metadata = next(stream)
        except StopIteration:
            fetch(ref)  # a lone item at the end is the encoder's error
            raise AssertionError("a stream ended between a table and its metadata") from None
        yield ref, fetch(metadata)


def card_facts(
    config: RewardModelJob, found: Read, scores: dict[str, dict[str, Any]], steps: str
) -> dict[str, Any]:
    """What the model card tells, besides head and scoring contract."""
    data, loss = config.data, config.loss
    sources: list[dict[str, Any]] = [
        {
            "path": source.path,
            "use": "training",
            "rows": found.sets["train"].by_source.get(number, 0),
            "weight": source.weight,
            "left_out": found.by_source[number],
        }
        for number, source in enumerate(data.train)
    ]
    for name, rows in found.sets.items():
        if name != "train":
            path = data.eval[name].path if name in data.eval else data.train[0].path
            sources.append({"path": path, "use": name, "rows": len(rows.uids)})
    regularizer = f"{loss.regularizer} (alpha {loss.alpha}, beta {loss.beta})"
    extras = ("label_smoothing", "centering", "score_l2")
    return {
        "name": config.name,
        "base_model": config.model.path,
        "data": sources,
        "losses": {
            "preference": loss.preference,
            "regularizer": regularizer if loss.alpha else "none",
            **{name: getattr(loss, name) for name in extras if getattr(loss, name)},
            "steps": steps,
        },
        "scores": [
            {
                "set": name,
                "value": of_set["accuracy"],
                "low": of_set["accuracy_low"],
                "high": of_set["accuracy_high"],
                "rows": len(found.sets[name].uids),
            }
            for name, of_set in scores.items()
        ],
        "config": config.model_dump(mode="json"),
    }

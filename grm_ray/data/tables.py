"""Every stage's table, and the one way in and out of a `list` column.

A `list<int32>` column is one flat value buffer plus offsets: a packed batch as it stands.
Each stage emits `uid` plus its *new* columns only; the learner joins by uid.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

# Preference pairs, tokenised. Scored sequence = prompt_tokens + chosen_tokens (or rejected_tokens);
# both answers end with the contract's terminal token.
PAIRS = pa.schema(
    [
        ("uid", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("chosen_tokens", pa.list_(pa.int32())),
        ("rejected_tokens", pa.list_(pa.int32())),
        ("margin", pa.float32()),  # null: the data set has none
        ("smoothing", pa.float32()),  # chance of a wrong label; null: the config's
    ]
)

# Answers with graded attributes (HelpSteer2), tokenised; NaN: the attribute was not graded.
RATED = pa.schema(
    [
        ("uid", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("answer_tokens", pa.list_(pa.int32())),
        ("labels", pa.list_(pa.float32())),
    ]
)

# Prompts of an RL run: the templated prompt with the assistant's turn opened.
PROMPTS = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("prompt", pa.string()),  # text of the last user turn, for people and for true rewards
        ("messages", pa.string()),  # the whole conversation as JSON, for other templates
        ("prompt_tokens", pa.list_(pa.int32())),
    ]
)

# One sampled answer, written by a rollout worker.
ROLLOUTS = pa.schema(
    [
        ("uid", pa.string()),
        ("prompt", pa.string()),
        ("messages", pa.string()),
        ("response", pa.string()),
        ("prompt_tokens", pa.list_(pa.int32())),
        ("response_tokens", pa.list_(pa.int32())),  # the terminal token included, if it came
        ("engine_logprobs", pa.list_(pa.float32())),  # nats, of the sampling law (temperature in)
        ("finished", pa.bool_()),  # ended by its terminal token, not by the length limit
        ("incarnation", pa.int32()),  # } policy version that wrote the row, ordered as a pair
        ("version", pa.int32()),  # }
    ]
)

# The reward pool's new columns: raw scores, never overwritten.
SCORES = pa.schema(
    [
        ("uid", pa.string()),
        ("scores", pa.list_(pa.float32())),  # one a reward model, in that model's own units
        ("rules", pa.list_(pa.float32())),  # one a rule of the reward's stages
        ("true_reward", pa.float32()),  # only watched; null where no true reward is configured
        ("fingerprint", pa.string()),  # of the reward models' weights and contracts
        ("refused", pa.string()),  # why a score, rule or true reward is NaN; null: none is
    ]
)

# What others ask a score for: a conversation, or text that carries its template already.
ASKED = pa.schema(
    [
        ("messages", pa.string()),  # the conversation before the answer, as JSON; null: plain text
        ("prompt", pa.string()),  # of plain text; may be empty
        ("response", pa.string()),
    ]
)

# Answers of preference sets as a scorer reads them.
TEXTS = pa.schema(
    [
        ("group", pa.int32()),  # of the contest: its answers are cut to fit together
        ("messages", pa.string()),
        ("response", pa.string()),
    ]
)

# Their scores in a file, one row an answer, contest by contest.
SCORED = pa.schema(
    [
        ("contest", pa.int32()),
        ("chosen", pa.bool_()),
        ("score", pa.float32()),
        ("characters", pa.int32()),  # of the answer's text: a length that no tokenizer decides
        ("subset", pa.string()),
        ("prompt_id", pa.string()),
    ]
)

# The learner's view of a row before the update; one value per response token.
EVALUATIONS = pa.schema(
    [
        ("uid", pa.string()),
        ("logprobs", pa.list_(pa.float32())),  # nats, policy before the update
        ("ref_logprobs", pa.list_(pa.float32())),  # nats, reference policy
        ("values", pa.list_(pa.float32())),  # critic, in units of the normalised reward
    ]
)


def flat(table: pa.Table | pa.RecordBatch, name: str) -> tuple[np.ndarray, np.ndarray]:
    """A list column as `(values_T, offsets_B1)`: one flat array and the rows' bounds.

    `flatten()` and the lengths respect a slice's window; `.values` and `.offsets` do not.
    """
    column = table.column(name)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    offsets = np.zeros(len(lengths) + 1, dtype=np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return values, offsets


def nested(values_T: np.ndarray, offsets_B1: np.ndarray) -> pa.ListArray:
    """The inverse of `flat`."""
    return pa.ListArray.from_arrays(pa.array(offsets_B1.astype(np.int32)), pa.array(values_T))


def select(table: pa.Table, uids: list[str]) -> pa.Table:
    """The rows of `uids`, in that order (a row present twice counts once).

    Raises:
        KeyError: when a uid is not in the table.
    """
    where = {uid: row for row, uid in enumerate(table.column("uid").to_pylist())}
    return table.take(pa.array([where[uid] for uid in uids], pa.int64()))

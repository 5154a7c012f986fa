"""One row to one record; what is missing, empty or of another type is a `BadRow` that says so."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from grm_ray.config.schema import Source
from grm_ray.data.adapters import Adapter
from grm_ray.data.chat import Message
from grm_ray.data.records import Answer, BadRow, Contest, Rated, Turns, number


def contest(row: Any, adapter: Adapter, source: Source) -> Contest:
    """A row, or the neighbouring rows that `adapter` wants together, as a contest.

    Raises:
        BadRow: it gives none.
    """
    row = _converted(adapter.convert, row)
    for column in ("chosen", "rejected"):
        if row.get(column) is None:
            raise BadRow(f"no '{column}'")
    if row.get("action") == "drop" and "strength_mean" in row:
        raise BadRow("dropped by curation")
    chosen: tuple[Answer, ...]
    rejected: tuple[Answer, ...]
    if adapter.several:
        prompt = _conversation(row.get("prompt"), "prompt")
        chosen, rejected = _answers(row["chosen"], "chosen"), _answers(row["rejected"], "rejected")
    elif row.get("prompt") is not None:
        prompt = _conversation(row["prompt"], "prompt")
        chosen = (_answer(row["chosen"], "chosen"),)
        rejected = (_answer(row["rejected"], "rejected"),)
    else:
        prompt, one, other = _implicit(row["chosen"], row["rejected"], adapter.diverging)
        chosen, rejected = (one,), (other,)
    if set(chosen) & set(rejected):
        raise BadRow("identical answers")
    smoothing = _number(row.get("label_smoothing"), "label_smoothing")
    if smoothing is not None and not 0 <= smoothing <= 1:
        raise BadRow(f"'label_smoothing' is not a probability: {smoothing}")
    return Contest(
        _frozen(prompt),
        chosen,
        rejected,
        _number(row.get("margin"), "margin"),
        smoothing,
        _text(row.get("subset"), "subset") or source.subset,
        None if row.get("name") is None else str(row["name"]),
    )


def rated(row: Any, convert: Callable[[Any], Any], attributes: Sequence[str]) -> Rated:
    """A row as a graded answer.

    Raises:
        BadRow: it is none, or nothing is graded.
    """
    row = _converted(convert, row)
    prompt = _conversation(row.get("prompt"), "prompt")
    labels = tuple(_number(row.get(name), name) for name in attributes)
    if all(label is None for label in labels):
        raise BadRow("none of the attributes is graded")
    return Rated(_frozen(prompt), _answer(row.get("response"), "response"), labels)


def prompt(row: Any) -> Turns:
    """The prompt of a row with a column of that name.

    Raises:
        BadRow: it has none.
    """
    return _frozen(_conversation(_require_object(row).get("prompt"), "prompt"))


# ------------------------------------------------------------------ inside


def _require_object(row: Any) -> dict[str, Any]:
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow(f"not an object: {type(row).__name__}")
    return row


def _converted(convert: Callable[[Any], Any], row: Any) -> dict[str, Any]:
    try:
        return convert(list(row) if isinstance(row, tuple) else _require_object(row))
    except BadRow:
        raise  # a ValueError too
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise BadRow(f"not in the named format: {error!r}") from None


def _implicit(chosen: Any, rejected: Any, diverging: bool) -> tuple[list[Message], Answer, Answer]:
    """TRL's implicit prompt: both answers are whole conversations with a common head."""
    if not (isinstance(chosen, list) and isinstance(rejected, list)):
        raise BadRow("no 'prompt', and the answers are not conversations")
    good, bad = _messages(chosen, "chosen"), _messages(rejected, "rejected")
    if diverging and len(good) == len(bad) > 2 and good[:-1] != bad[:-1]:
        return _diverging(good, bad)
    if len(good) < 2 or len(bad) < 2 or good[:-1] != bad[:-1]:
        raise BadRow("the two conversations differ before their last turn")
    return (
        _conversation(good[:-1], "prompt"),
        _answer(good[-1:], "chosen"),
        _answer(bad[-1:], "rejected"),
    )


def _diverging(good: list[Message], bad: list[Message]) -> tuple[list[Message], Answer, Answer]:
    """Two dialogues: what they begin with is the prompt, the rest of each is an answer."""
    common = next(i for i, (one, two) in enumerate(zip(good, bad, strict=True)) if one != two)
    if common == 0 or good[common - 1]["role"] != "user":
        raise BadRow("the two dialogues have no common question")
    for side, name in ((good, "chosen"), (bad, "rejected")):
        _answer(side[-1:], name)
    return good[:common], _frozen(good[common:]), _frozen(bad[common:])


def _conversation(value: Any, name: str) -> list[Message]:
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    messages = _messages(messages, name)
    if messages[-1]["role"] != "user":
        raise BadRow(f"'{name}' does not end with a user turn")
    return messages


def _messages(value: Any, name: str) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{name}' is neither text nor a list of messages")
    for message in value:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise BadRow(f"'{name}' holds a message without a role")
        if not isinstance(message.get("content"), str):
            raise BadRow(f"'{name}' holds a message without text content")
        if message["role"] not in {"system", "user", "assistant"}:
            raise BadRow(f"'{name}' holds the unknown role '{message['role']}'")
        _check_unicode(message["content"], name)
    if not any(m["content"].strip() for m in value if m["role"] == "user"):
        if value[-1]["role"] != "assistant":
            raise BadRow(f"empty '{name}'")
    return [{"role": m["role"], "content": m["content"]} for m in value]


def _answers(value: Any, name: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        raise BadRow(f"'{name}' is not a list of answers")
    return tuple(_answer(answer, name) for answer in value)


def _answer(value: Any, name: str) -> str:
    if isinstance(value, list):
        messages = _messages(value, name)
        if len(messages) != 1 or messages[0]["role"] != "assistant":
            raise BadRow(f"'{name}' is not one assistant turn")
        value = messages[0]["content"]
    if not isinstance(value, str):
        raise BadRow(f"'{name}' is neither text nor a list of messages")
    if not value.strip():
        raise BadRow(f"empty '{name}'")
    _check_unicode(value, name)
    return value


def _check_unicode(text: str, name: str) -> None:
    """JSON can hold halves of characters, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise BadRow(f"'{name}' is not valid Unicode") from None


def _number(value: Any, name: str) -> float | None:
    if value is None or value != value:  # NaN: a column's missing number
        return None
    return number(value, name)


def _text(value: Any, name: str) -> str | None:
    if value is None:
        return None
    if isinstance(value, str):
        _check_unicode(value, name)
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise BadRow(f"'{name}' is not text: {type(value).__name__}")


def _frozen(messages: list[Message]) -> Turns:
    return tuple((m["role"], m["content"]) for m in messages)

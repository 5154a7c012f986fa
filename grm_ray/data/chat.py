"""The scoring contract: how a conversation becomes the tokens that a reward model reads.

It is decided once, when the reward model is trained, saved beside its weights, and used by every
path that scores: trainer, scorer pool, evaluation. The sequence is, in layout "answer" (ours),

    chat_template(prompt messages, assistant turn opened) + tokens(answer) + terminal token

and in layout "template" (reward models that others trained)

    chat_template(prompt messages and answer)

The score is read at the last token's position, found from the answer's bounds in the packed
sequence. Pooling never looks for a token id, so `pad == eos` cannot move it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jinja2

FILE = "scoring_contract.json"
VERSION = 2
LAYOUTS = ("answer", "template")
TRUNCATIONS = ("left", "right", "drop")
Message = dict[str, str]


@dataclass(frozen=True)
class ScoringContract:
    """What must agree between training and scoring. What a tokenizer decides is checked on load.

    Raises:
        ValueError: a field that no contract can have.
    """

    template_sha256: str  # of the tokenizer's chat template
    vocabulary_sha256: str  # of the sorted (token, id) pairs
    terminal_token_id: int | None  # closes every answer; None in layout "template", which closes
    max_length: int  # tokens of prompt + answer + terminal
    truncation: str  # "left": the prompt's head goes; "right": the answer's tail; "drop"
    version: int = VERSION
    layout: str = "answer"
    # Layout "template": the templated text is tokenised with special tokens, as any text is, so
    # that a BOS which the template writes comes twice.
    special_tokens_twice: bool = False
    # Layout "template": tokens of this id at the very end are not read (transformers' sequence
    # classification passes over its pad token when it looks for the last one).
    passed_over_id: int | None = None

    def __post_init__(self) -> None:
        if self.version not in range(1, VERSION + 1):
            raise ValueError(
                f"version {self.version!r} is not known to this grm_ray (1 to {VERSION} are); it "
                "was written by a newer one"
            )
        if self.truncation not in TRUNCATIONS:
            raise ValueError(f"truncation must be one of {TRUNCATIONS}, not {self.truncation!r}")
        if self.layout not in LAYOUTS:
            raise ValueError(f"layout must be one of {LAYOUTS}, not {self.layout!r}")
        if not _is_count(self.max_length) or self.max_length < 1:
            raise ValueError(
                f"max_length must be a number of tokens above 0, not {self.max_length!r}"
            )
        closes = self.terminal_token_id
        if (closes is None) != (self.layout == "template") or not _is_count(closes or 0):
            raise ValueError(
                "terminal_token_id must be a token id in layout 'answer' and null in layout "
                f"'template', not {closes!r}"
            )

    @classmethod
    def of(cls, tokenizer: Any, max_length: int, truncation: str) -> ScoringContract:
        """The contract of `tokenizer` as it stands.

        Raises:
            ValueError: when the tokenizer has no chat template or no eos token.
        """
        hashes = _hashes(tokenizer)
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {_name(tokenizer)} has no eos token to end answers with")
        return cls(
            **hashes,
            terminal_token_id=int(tokenizer.eos_token_id),
            max_length=max_length,
            truncation=truncation,
        )

    @classmethod
    def of_template(
        cls,
        tokenizer: Any,
        max_length: int,
        special_tokens_twice: bool = False,
        passed_over_id: int | None = None,
    ) -> ScoringContract:
        """The contract of a reward model that reads what the chat template writes, to its end.

        Raises:
            ValueError: when the tokenizer has no chat template.
        """
        return cls(
            **_hashes(tokenizer),
            terminal_token_id=None,
            max_length=max_length,
            truncation="left",
            layout="template",
            special_tokens_twice=special_tokens_twice,
            passed_over_id=passed_over_id,
        )

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> ScoringContract:
        """Read the contract beside a checkpoint.

        Raises:
            ValueError: when the file is missing or of another form.
        """
        path = folder / FILE
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise ValueError(
                f"{folder} has no {FILE}: it is not a reward model saved by grm_ray"
            ) from None
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: not a scoring contract ({error})") from None

    def check(self, tokenizer: Any) -> None:
        """Refuse a tokenizer that would build other sequences than the training saw.

        Raises:
            ValueError: naming what differs.
        """
        here: dict[str, Any] = dict(_hashes(tokenizer))
        if self.layout == "answer":
            here["terminal_token_id"] = tokenizer.eos_token_id
        mine = asdict(self)
        wrong = [name for name, value in here.items() if mine[name] != value]
        if wrong:
            raise ValueError(
                f"scoring contract broken: {', '.join(wrong)} of tokenizer {_name(tokenizer)} "
                "differ from the reward model's training; use the tokenizer saved with it"
            )

    def rebound(self, tokenizer: Any) -> ScoringContract:
        """The same contract for a tokenizer that builds the same sequences by other means.

        Raises:
            ValueError: when the tokenizer has no chat template.
        """
        return replace(self, **_hashes(tokenizer))

    def same_tokens_as(self, tokenizer: Any) -> bool:
        """Whether a policy's tokens can pass to this reward model without re-templating."""
        if self.layout == "template":
            return False
        try:
            self.check(tokenizer)
        except ValueError:
            return False
        return True

    def tokens(
        self, tokenizer: Any, messages: Sequence[Message], answers: Sequence[str]
    ) -> tuple[list[int], list[list[int]]]:
        """Ids of the prompt and of each answer, closed and uncut; `fit` cuts them.

        The prompt's ids followed by an answer's are exactly what is scored. In layout "template"
        the two part where the answers' conversations and the templated prompt do.

        Raises:
            jinja2.TemplateError: the chat template takes no such conversation.
            ValueError: when conversations with the same prompt do not begin alike.
        """
        if self.layout == "answer":
            closed = [self.close(answer_tokens(tokenizer, answer)) for answer in answers]
            return prompt_tokens(tokenizer, messages), closed
        opened = self._templated(tokenizer, messages, add_generation_prompt=True)
        wholes = []
        for answer in answers:
            said = [*messages, {"role": "assistant", "content": answer}]
            whole = self._templated(tokenizer, said, add_generation_prompt=False)
            while whole and whole[-1] == self.passed_over_id:
                whole.pop()
            wholes.append(whole)
        shared = min(min(common_prefix(opened, whole), len(whole) - 1) for whole in wholes)
        if shared < 1:
            raise ValueError(
                f"the chat template of {_name(tokenizer)} writes the beginning of a conversation "
                "differently when the answer is added: prompt and answer cannot be separated"
            )
        return wholes[0][:shared], [whole[shared:] for whole in wholes]

    def close(self, answer: Sequence[int]) -> list[int]:
        """`answer` with exactly one terminal token at its end; as it is in layout "template"."""
        answer = list(answer)
        if self.terminal_token_id is None or answer[-1:] == [self.terminal_token_id]:
            return answer
        return [*answer, self.terminal_token_id]

    def fit(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]] | None:
        """Cut a too long sequence as the contract says; None: the row is to be dropped."""
        over = len(prompt) + len(answer) - self.max_length
        if over <= 0:
            return prompt, answer
        if self.truncation == "left" and over < len(prompt):
            return prompt[over:], answer
        if self.truncation == "right" and len(prompt) + 2 <= self.max_length:
            keep = self.max_length - len(prompt)
            if self.terminal_token_id is None:
                return prompt, answer[:keep]
            return prompt, [*answer[: keep - 1], self.terminal_token_id]
        return None

    def _templated(
        self, tokenizer: Any, messages: Sequence[Message], add_generation_prompt: bool
    ) -> list[int]:
        """`messages` through the chat template, as tokens."""
        with rendering():
            written = tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
            )
        return list(tokenizer(written, add_special_tokens=self.special_tokens_twice)["input_ids"])


def prompt_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The templated conversation with the assistant's turn opened; special tokens once.

    Raises:
        jinja2.TemplateError: the chat template takes no such conversation.
    """
    with rendering():
        return list(
            tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
            )
        )


@contextlib.contextmanager
def rendering() -> Iterator[None]:
    """Whatever a chat template fails with is its refusal: a `jinja2.TemplateError`."""
    try:
        yield
    except jinja2.TemplateError:
        raise
    except Exception as error:  # templates are programs, which divide by zero and add text to null
        raise jinja2.TemplateError(f"{type(error).__name__}: {error}") from error


def answer_tokens(tokenizer: Any, text: str) -> list[int]:
    """An answer's tokens, without any special token."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def _hashes(tokenizer: Any) -> dict[str, Any]:
    """The fields that say what a tokenizer does with text."""
    if not tokenizer.chat_template:
        raise ValueError(
            f"tokenizer {_name(tokenizer)} has no chat template; use a chat model's tokenizer"
        )
    vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), separators=(",", ":"))
    return {
        "template_sha256": _sha256(str(tokenizer.chat_template)),
        "vocabulary_sha256": _sha256(vocabulary),
    }


def _name(tokenizer: Any) -> str:
    return getattr(tokenizer, "name_or_path", "?")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def common_prefix(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((n for n, (a, b) in pairs if a != b), min(len(one), len(other)))

"""The scoring contract: how a conversation becomes the tokens that a reward model reads.

It is decided once, when the reward model is trained, saved beside its weights, and used by every
path that scores: trainer, scorer pool, evaluation. The sequence is

    chat_template(prompt messages, assistant turn opened) + tokens(answer) + terminal token

and the score is read at the terminal token's position, found from the answer's bounds in the packed
sequence. Pooling never looks for a token id, so `pad == eos` cannot move it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILE = "scoring_contract.json"
Message = dict[str, str]


@dataclass(frozen=True)
class ScoringContract:
    """What must agree between training and scoring. All fields are compared on load."""

    template_sha256: str  # of the tokenizer's chat template
    vocabulary_sha256: str  # of the sorted (token, id) pairs
    terminal_token_id: int  # closes every answer; the position whose hidden state is scored
    max_length: int  # tokens of prompt + answer + terminal
    truncation: str  # "left": the prompt's head goes; "right": the answer's tail; "drop"
    version: int = 1

    @classmethod
    def of(cls, tokenizer: Any, max_length: int, truncation: str) -> ScoringContract:
        """The contract of `tokenizer` as it stands.

        Raises:
            ValueError: when the tokenizer has no chat template or no eos token.
        """
        name = getattr(tokenizer, "name_or_path", "?")
        if not tokenizer.chat_template:
            raise ValueError(f"tokenizer {name} has no chat template; use a chat model's tokenizer")
        if tokenizer.eos_token_id is None:
            raise ValueError(f"tokenizer {name} has no eos token, so no answer could be closed")
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), separators=(",", ":"))
        return cls(
            template_sha256=_sha256(str(tokenizer.chat_template)),
            vocabulary_sha256=_sha256(vocabulary),
            terminal_token_id=int(tokenizer.eos_token_id),
            max_length=max_length,
            truncation=truncation,
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
                f"{folder} has no {FILE}: it is no reward model saved by this project"
            ) from None
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"{path}: not a scoring contract ({error})") from None

    def check(self, tokenizer: Any) -> None:
        """Refuse a tokenizer that would build other sequences than the training saw.

        Raises:
            ValueError: naming what differs.
        """
        here = ScoringContract.of(tokenizer, self.max_length, self.truncation)
        wrong = [k for k, v in asdict(self).items() if asdict(here)[k] != v]
        if wrong:
            raise ValueError(
                f"scoring contract broken: {', '.join(wrong)} of tokenizer "
                f"{getattr(tokenizer, 'name_or_path', '?')} differ from the reward model's training"
            )

    def same_tokens_as(self, tokenizer: Any) -> bool:
        """Whether a policy's tokens can pass to this reward model without re-templating."""
        try:
            self.check(tokenizer)
        except ValueError:
            return False
        return True

    def close(self, answer: Sequence[int]) -> list[int]:
        """`answer` with exactly one terminal token at its end."""
        answer = list(answer)
        return (
            answer if answer[-1:] == [self.terminal_token_id] else [*answer, self.terminal_token_id]
        )

    def fit(self, prompt: list[int], answer: list[int]) -> tuple[list[int], list[int]] | None:
        """Cut a too long sequence as the contract says; None: the row is to be dropped."""
        over = len(prompt) + len(answer) - self.max_length
        if over <= 0:
            return prompt, answer
        if self.truncation == "left" and over < len(prompt):
            return prompt[over:], answer
        if self.truncation == "right" and len(prompt) + 2 <= self.max_length:
            keep = self.max_length - len(prompt) - 1
            return prompt, [*answer[:keep], self.terminal_token_id]
        return None


def prompt_tokens(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """The templated conversation with the assistant's turn opened; special tokens once."""
    return list(
        tokenizer.apply_chat_template(
            list(messages), add_generation_prompt=True, tokenize=True, return_dict=False
        )
    )


def answer_tokens(tokenizer: Any, text: str) -> list[int]:
    """An answer's tokens, without any special token."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()

"""A saved reward model that reads rows as they come: from a policy, or as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from typing import TypeVar

import jinja2
import numpy as np
import pyarrow as pa
import torch

from grm_ray.data.encode import fit_together
from grm_ray.data.packing import by_key
from grm_ray.data.tables import flat
from grm_ray.models.backbone import load_tokenizer
from grm_ray.models.checkpoint import load_reward_model, local_folder
from grm_ray.models.out_of_memory import fitting
from grm_ray.models.scoring import Row, score_rows, score_rows_by_all
from grm_ray.models.shared_layers import share_layers, share_weights

T = TypeVar("T")
# Hardly a token is longer, white space aside.
_CHARACTERS_A_TOKEN = 64


class RewardReader:
    """One reward model in eval mode, with its tokenizer and scoring contract.

    Args:
        folder: a saved reward model, or a hub id.
        policy_path: whose tokens the rows may bring; None: rows come as text only.
        token_budget: tokens of one pass through the backbone; halved where memory runs out.

    Attributes:
        fingerprint: of its weights and contract.
        same_tokens: whether a policy's tokens pass through as they are.
    """

    def __init__(
        self,
        folder: str,
        dtype: str,
        policy_path: str | None,
        token_budget: int,
        trust_remote_code: bool = False,
    ) -> None:
        self._folder, self._budget = folder, token_budget
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        model, self.contract, self.fingerprint = load_reward_model(folder, dtype, trust_remote_code)
        self.model = model.to(self._device)
        self.tokenizer = load_tokenizer(str(local_folder(folder)), trust_remote_code)
        self.contract.check(self.tokenizer)
        # Tokens pass through where policy and reward model read the same ones.
        self.same_tokens = False
        if policy_path is not None:
            policy = load_tokenizer(policy_path, trust_remote_code)
            self.same_tokens = self.contract.same_tokens_as(policy)
            # A policy may end an answer with another stop token than the reward model was shown.
            self._stops = set(policy.all_special_ids) - {self.contract.terminal_token_id}

    @property
    def members(self) -> int:
        """Scores that the model gives to an answer: those of its head's ensemble, or one."""
        return self.model.head.members

    def score(self, rollouts: pa.Table) -> np.ndarray:
        """Score of each row of a `ROLLOUTS` batch, in its order, `(B,)` fp32."""
        return self.member_scores(rollouts).mean(axis=1)

    def member_scores(self, rollouts: pa.Table) -> np.ndarray:
        """Each member's score of each row, `(B, K)` fp32; NaN where the chat template refuses."""
        (scores,) = self.scores_by([self], rollouts)
        return scores

    def scores_by(self, readers: Sequence[RewardReader], asked: pa.Table) -> list[np.ndarray]:
        """`member_scores` of readers that read the very tokens that this one does.

        Args:
            asked: `ROLLOUTS`, or rows of `data.tables.ASKED`.
        """
        sides = self._sides(asked)
        read = [i for i, side in enumerate(sides) if side is not None]
        rows = [self._cut(side[0], [side[1]])[0] for side in sides if side is not None]
        models = [reader.model for reader in readers]
        found = self._fitting(rows, lambda n: score_rows_by_all(models, rows, n, self._device))
        scores = [np.full((len(sides), r.members), np.nan, np.float32) for r in readers]
        for all_rows, of_read in zip(scores, found, strict=True):
            all_rows[read] = of_read
        return scores

    def _fitting(self, rows: Sequence[Row], read: Callable[[int], T]) -> T:
        """`read(tokens of a pass)`; where memory runs out with fewer, which are kept."""
        longest = max((len(prompt) + len(answer) for prompt, answer in rows), default=0)
        found, self._budget = fitting(read, self._budget, longest)
        return found

    def reads_like(self, other: RewardReader) -> bool:
        """Whether the very tokens that this one reads can be given to the other."""
        return (
            self.contract == other.contract
            and self.same_tokens == other.same_tokens
            and self.contract.same_tokens_as(other.tokenizer)
        )

    def judge(self, texts: pa.Table) -> np.ndarray:
        """Scores of `TEXTS` (`data.tables`), in their order.

        The answers of one group are cut to fit as training cuts a pair: with one common prompt. A
        group that the chat template refuses has NaN scores.

        Raises:
            ValueError: a score that is no number.
        """
        scores = np.full(texts.num_rows, np.nan, np.float32)
        rows: list[tuple[np.ndarray, np.ndarray]] = []
        at: list[int] = []
        for group in by_key(texts["group"].to_pylist()):
            sides = [s for s in self._templated(texts.take(pa.array(group))) if s is not None]
            if len(sides) < len(group):
                continue
            for same in by_key(tuple(prompt) for prompt, _ in sides):
                rows += self._cut(sides[same[0]][0], [sides[i][1] for i in same])
                at += [group[i] for i in same]
        found = self._fitting(rows, lambda n: score_rows(self.model, rows, n, self._device))
        if not np.isfinite(found).all():
            raise ValueError(f"reward model {self._folder} gives scores that are not finite")
        scores[at] = found
        return scores

    def _sides(self, asked: pa.Table) -> list[tuple[list[int], list[int]] | None]:
        """Prompt and closed answer of each row; None where the chat template refuses it."""
        if self.same_tokens and "prompt_tokens" in asked.column_names:
            return list(self._ids(asked))
        if "prompt_tokens" in asked.column_names or "prompt" not in asked.column_names:
            return self._templated(asked)
        messages = asked["messages"].to_pylist()
        chats = [i for i, told in enumerate(messages) if told is not None]
        found = dict(
            zip(chats, self._templated(asked.take(pa.array(chats, pa.int64()))), strict=True)
        )
        prompts, responses = asked["prompt"].to_pylist(), asked["response"].to_pylist()
        return [
            found[i] if i in found else self._as_it_stands(prompts[i] or "", responses[i])
            for i in range(asked.num_rows)
        ]

    def _as_it_stands(self, prompt: str, response: str) -> tuple[list[int], list[int]] | None:
        """Text that carries its template already, as its tokens; None where there is none."""
        contract, tokenizer = self.contract, self.tokenizer
        most = _CHARACTERS_A_TOKEN * contract.max_length  # what is cut off anyway is not read
        ended = response.rstrip()
        if ended.endswith(tuple(tokenizer.all_special_tokens)):
            response = ended  # templates write a line's end after the end of a turn
        asked = tokenizer(prompt[-most:], add_special_tokens=contract.special_tokens_twice)
        said = tokenizer(response[-most:], add_special_tokens=False)
        asked, answer = asked["input_ids"] if prompt else [], said["input_ids"]
        if contract.layout == "answer":
            answer = _without_last(answer, set(tokenizer.all_special_ids))
            answer = contract.close(answer) if answer or asked else []
        else:
            answer = _without_last(answer, {contract.passed_over_id})
        if not asked:
            asked, answer = answer[:1], answer[1:]
        return (asked, answer) if asked and answer else None

    def _ids(self, rollouts: pa.Table) -> Iterator[tuple[list[int], list[int]]]:
        """Prompt and closed answer of each row, from the tokens that it brings."""
        prompts, prompt_at = flat(rollouts, "prompt_tokens")
        answers, answer_at = flat(rollouts, "response_tokens")
        for i in range(rollouts.num_rows):
            answer = self._without_stop(answers[answer_at[i] : answer_at[i + 1]].tolist())
            yield prompts[prompt_at[i] : prompt_at[i + 1]].tolist(), self.contract.close(answer)

    def _templated(self, texts: pa.Table) -> list[tuple[list[int], list[int]] | None]:
        """Prompt and closed answer of each row, from its text; a prompt is tokenised once.

        None where the chat template refuses the conversation.
        """
        messages, responses = texts["messages"].to_pylist(), texts["response"].to_pylist()
        found: dict[int, tuple[list[int], list[int]]] = {}
        for rows in by_key(messages):
            try:
                prompt, answers = self.contract.tokens(
                    self.tokenizer, json.loads(messages[rows[0]]), [responses[i] for i in rows]
                )
            except jinja2.TemplateError:
                continue
            found |= {i: (prompt, answer) for i, answer in zip(rows, answers, strict=True)}
        return [found.get(i) for i in range(len(messages))]

    def _cut(
        self, prompt: list[int], answers: Sequence[list[int]]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each answer with its prompt, as long as the contract allows.

        Nothing is dropped here: where the contract would drop, an answer loses its beginning.
        """
        fitted = fit_together(self.contract, prompt, answers)
        if fitted is None:
            most = self.contract.max_length - 1
            kept = [answer[-most:] for answer in answers]
            room = self.contract.max_length - max(map(len, kept))
            fitted = prompt[-room:], kept
        return [(np.array(fitted[0]), np.array(answer)) for answer in fitted[1]]

    def _without_stop(self, answer: list[int]) -> list[int]:
        return answer[:-1] if answer and answer[-1] in self._stops else answer


def _without_last(tokens: list[int], these: Container[int | None]) -> list[int]:
    """`tokens` up to the last one that is none of `these`."""
    end = len(tokens)
    while end and tokens[end - 1] in these:
        end -= 1
    return tokens[:end]


class RewardReaders:
    """Several reward models that read the same rows.

    Those that read the same tokens are tokenised for once, hold equal weights once, and compute
    their common layers once (`models.shared_layers`).

    Attributes:
        readers: in the order that they were given in.
        layers_shared: layers that several models compute once, summed over groups of models.
        bytes_shared: what equal weights take but once.
    """

    def __init__(self, readers: Iterable[RewardReader]) -> None:
        self.readers: list[RewardReader] = []
        self._groups: list[list[int]] = []
        self.layers_shared = self.bytes_shared = 0
        for number, reader in enumerate(readers):  # loaded one by one: what is equal goes at once
            self.readers.append(reader)
            alike = (g for g in self._groups if self.readers[g[0]].reads_like(reader))
            group = next(alike, None)
            if group is None:
                self._groups.append([number])
            else:
                group.append(number)
                first = self.readers[group[0]]
                self.bytes_shared += share_weights([first.model.lm, reader.model.lm])
        for group in self._groups:
            self.layers_shared += share_layers([self.readers[n].model.lm for n in group])

    def member_scores(self, asked: pa.Table) -> list[np.ndarray]:
        """`RewardReader.member_scores` of each.

        Args:
            asked: `ROLLOUTS`, or rows of `data.tables.ASKED`.
        """
        found: dict[int, np.ndarray] = {}
        for group in self._groups:
            readers = [self.readers[number] for number in group]
            scores = readers[0].scores_by(readers, asked)
            found |= dict(zip(group, scores, strict=True))
        return [found[number] for number in range(len(self.readers))]

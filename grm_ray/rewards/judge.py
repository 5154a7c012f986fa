"""The demo's true reward: a program that anyone can read, in place of a human judge.

It looks at four things a reader would look at too, each in [0, 1]:

* `topic`   does the answer use the words that the prompt asks about, in words of its own?
* `finish`  does it end where a sentence ends?
* `fresh`   does it avoid saying the same again?
* `length`  is it about as long as the prompt asks ("about 20 words")?

The judgement is their weighted mean times a gate, `plain`, which is 1 for ordinary prose and
falls towards 0 for what would please the parts without being an answer: the question copied back,
a list of keywords, a word or two. An empty answer gets 0. A prompt that states no length is
judged by the other parts alone.

Training never sees this judgement: reward models see pairs (a quarter of them with the label
wrong), PPO sees the reward model. Plots show it beside the reward, so that one can see when the
two part. Pure: text in, numbers out, no I/O.
"""

from __future__ import annotations

import itertools
import re

WEIGHTS = {"topic": 0.3, "finish": 0.25, "fresh": 0.15, "length": 0.3}
"""What each part counts. They sum to 1; without a stated length the others share its weight."""

LENGTH_TOLERANCE = 0.15
"""A length this close to the one asked (as a share of it) still counts as exact."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019][^\W_]+)*")
_ASKED_LENGTH = re.compile(r"\b(\d{1,4})[ -]words?\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…][\"'\u201d\u2019)\]*]*\s*$")

_FUNCTION_WORDS = frozenset(
    """
    a about above across after again against all almost along also although always am an and
    another any are around as at away be because been before behind being below between both but
    by can cannot could did do does doing done down during each either else enough even ever every
    few first for from further had has have having he her here hers herself him himself his how i
    if in into is it its itself just last less let like made make makes many may me might mine
    more most much must my myself near need never next no nor not nothing now of off often on once
    one only onto or other our ours out over own per quite rather same shall she should since so
    some something soon still such than that the their theirs them themselves then there these
    they this those though through thus to together too toward towards two under until up upon us
    very was we well were what when where whether which while who whom whose why will with within
    without would yes yet you your yours yourself
    don't doesn't didn't isn't aren't wasn't weren't can't couldn't won't wouldn't shouldn't
    i'm i've i'll i'd you're you've you'll you'd it's that's there's here's we're we've we'll
    they're they've he's she's let's what's who's
    """.split()  # noqa: SIM905
)

_INSTRUCTION_WORDS = frozenset(
    """
    add answer answers ask brief briefly compose create describe detail details draft essay
    example examples explain explanation following friend generate give given help information
    kindly know line lines link list main matter mean mention mentions name names note notes
    paragraph people person please point points provide question reason reasons reply respond
    response say sentence sentences short shortly state story stories suggest summarise summarize
    summary tell text thing things think tiny tip tips topic try use used using want way ways
    word words write
    """.split()  # noqa: SIM905
)


def judge(prompt: str, response: str) -> float:
    """The true reward of `response` to `prompt`, in [0, 1]; an empty response gets 0."""
    return judge_parts(prompt, response)["judge"]


def judge_parts(prompt: str, response: str) -> dict[str, float]:
    """The judgement with what it is made of.

    Returns:
        `topic`, `finish`, `fresh`, `length` and `plain`, each in [0, 1], and `judge`. `length` is
        left out where the prompt states no length; all are 0 for an answer without a word.
    """
    words = _words(response)
    asked = asked_length(prompt)
    if not words:
        names = [name for name in WEIGHTS if name != "length" or asked]
        return {**dict.fromkeys([*names, "plain"], 0.0), "judge": 0.0}
    parts = {
        "topic": _topic(prompt, words),
        "finish": 1.0 if _SENTENCE_END.search(response) else 0.0,
        "fresh": _fresh(words),
    }
    if asked:
        parts["length"] = _length(asked, len(words))
    weight = sum(WEIGHTS[name] for name in parts)
    mean = sum(WEIGHTS[name] * value for name, value in parts.items()) / weight
    plain = _plain(prompt, words)
    return {**parts, "plain": plain, "judge": min(1.0, plain * mean)}


def asked_length(prompt: str) -> int | None:
    """The length in words that the prompt asks for ("about 20 words"), None when it states none.

    The last statement counts: what stands in front of it may be an example.
    """
    found = [int(number) for number in _ASKED_LENGTH.findall(prompt)]
    return found[-1] if found and found[-1] > 0 else None


def topic_words(prompt: str) -> tuple[str, ...]:
    """The words (as stems) that the prompt asks about: its words without grammar and order."""
    stems = dict.fromkeys(
        _stem(word)
        for word in _words(prompt)
        if not (word in _FUNCTION_WORDS or word in _INSTRUCTION_WORDS or word.isdigit())
    )
    return tuple(stems)


def _topic(prompt: str, words: list[str]) -> float:
    """Share of the topic words used; three are enough for a prompt that names many."""
    topic = topic_words(prompt)
    if not topic:
        return 1.0
    used = set(topic) & {_stem(word) for word in words}
    return min(1.0, len(used) / min(3, len(topic)))


def _fresh(words: list[str]) -> float:
    """1 while hardly a content word or word pair comes twice; 0 when half of them are repeats."""
    content = [_stem(word) for word in words if word not in _FUNCTION_WORDS]
    pairs = list(itertools.pairwise(words))
    repeats = max(_repeated(content) - 0.1, 2 * (_repeated(pairs) - 0.05), 0.0)
    return max(0.0, 1.0 - 2.5 * repeats)


def _repeated(items: list) -> float:
    return 1.0 - len(set(items)) / len(items) if items else 0.0


def _length(asked: int, count: int) -> float:
    """1 within the tolerance, then down in a straight line: 0 at a third of, or at twice, `asked`.

    Being one word off is never held against an answer, however short the one asked for.
    """
    slack = max(1.0, LENGTH_TOLERANCE * asked)
    if abs(count - asked) <= slack:
        return 1.0
    if count < asked:
        near, far = asked - slack, asked / 3
    else:
        near, far = asked + slack, 2.0 * asked
    return max(0.0, 1.0 - abs(count - near) / max(abs(far - near), 1.0))


def _plain(prompt: str, words: list[str]) -> float:
    """How far this is prose of its own: the smallest of three looks, each 1 for ordinary text.

    1. Enough words to say something: four.
    2. Grammar holds it together: at least a fifth of the words are function words (English
       prose has two fifths to a half), which a list of keywords has not.
    3. It is not the question again: most runs of three words are not in the prompt.
    """
    enough = min(1.0, len(words) / 4)
    grammar = min(1.0, sum(word in _FUNCTION_WORDS for word in words) / len(words) / 0.2)
    asked = _words(prompt)
    of_prompt = set(zip(asked, asked[1:], asked[2:], strict=False))
    triples = list(zip(words, words[1:], words[2:], strict=False))
    copied = sum(triple in of_prompt for triple in triples) / len(triples) if triples else 0.0
    own = min(1.0, 2 * (1.0 - copied))
    return min(enough, grammar, own)


def _words(text: str) -> list[str]:
    return [word.replace("\u2019", "'") for word in _WORD.findall(text.lower())]


def _stem(word: str) -> str:
    """A rough stem, so that `dogs`, `dog's` and `walking` match `dog` and `walk`."""
    word = word.removesuffix("'s")
    for ending in ("ing", "ies", "ed", "es", "s", "y", "e"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not word.endswith("ss"):
            word = word.removesuffix(ending)
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] else word

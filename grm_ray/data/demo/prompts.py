"""The prompts of the demo: our own templates, filled with our own everyday topics.

Every prompt names two things to write about and a length in words; that is all the judge needs
(`grm_ray.rewards.judge` reads both from the text of the prompt). Training and held-out prompts
share the templates but no topic: no topic word of a held-out prompt is in any training prompt.
"""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass

TEMPLATES = (
    "Write about {n} words on {a} and {b}.",
    "Describe {a} and {b} in about {n} words.",
    "Tell a tiny story of about {n} words with {a} and {b} in it.",
    "In about {n} words, explain the link between {a} and {b}.",
    "Give one tip about {a} that mentions {b}. Use about {n} words.",
    "Say in about {n} words why {b} can matter for {a}.",
    "Write a note of about {n} words to a friend about {a} and {b}.",
)
LENGTHS = (8, 10, 12, 15, 18, 20, 25, 30, 35, 40, 45)
"""Asked lengths in words: from far below to just under what 64 tokens can hold."""

POLICY_LENGTHS = tuple(n for n in LENGTHS if n <= 25)
"""Those that fit into the 40 tokens which the demo's policy may write."""

TRAIN_PER_TOPIC = 5
TEST_PER_TOPIC = 6
POLICY_PER_TOPIC = 9
SEED = 20240229


@dataclass(frozen=True)
class DemoPrompt:
    """One prompt: its name, its text, and whether its topic is held out."""

    prompt_id: str
    text: str
    held_out: bool


TRAIN_TOPICS = (
    ("a garden", "rain"),
    ("a kitchen", "a kettle"),
    ("a bicycle", "a helmet"),
    ("a dog", "a long walk"),
    ("a cat", "a warm window"),
    ("fresh bread", "butter"),
    ("a morning run", "old shoes"),
    ("a train", "a ticket"),
    ("a library", "silence"),
    ("a school", "a bell"),
    ("a farmer", "a tractor"),
    ("a market", "apples"),
    ("winter", "a thick coat"),
    ("summer", "ice cream"),
    ("autumn", "yellow leaves"),
    ("the beach", "sand"),
    ("a mountain", "snow"),
    ("a river", "a wooden boat"),
    ("a forest", "mushrooms"),
    ("a campfire", "songs"),
    ("a tent", "the wind"),
    ("the night sky", "stars"),
    ("the moon", "the tide"),
    ("a doctor", "a patient"),
    ("a nurse", "a hospital"),
    ("a teacher", "homework"),
    ("a carpenter", "a hammer"),
    ("a painter", "a brush"),
    ("a singer", "a stage"),
    ("a violin", "practice"),
    ("a piano", "a concert"),
    ("a drum", "rhythm"),
    ("a dancer", "music"),
    ("a football team", "a coach"),
    ("tennis", "a racket"),
    ("swimming", "a pool"),
    ("chess", "patience"),
    ("a puzzle", "a missing piece"),
    ("a birthday", "a cake"),
    ("a wedding", "flowers"),
    ("a picnic", "a blanket"),
    ("breakfast", "eggs"),
    ("lunch", "a sandwich"),
    ("soup", "a spoon"),
    ("pasta", "tomato sauce"),
    ("rice", "vegetables"),
    ("coffee", "sugar"),
    ("tea", "lemon"),
    ("milk", "a cow"),
    ("cheese", "a mouse"),
    ("honey", "bees"),
    ("a spider", "a web"),
    ("a horse", "a stable"),
    ("a chicken", "corn"),
    ("a sheep", "wool"),
    ("a fish", "a bowl"),
    ("a turtle", "a shell"),
    ("a rabbit", "carrots"),
    ("an elephant", "water"),
    ("a lion", "its cubs"),
    ("a penguin", "cold"),
    ("an owl", "the dark"),
    ("a parrot", "a cage"),
    ("a frog", "a pond"),
    ("a duck", "mud"),
    ("an airport", "a suitcase"),
    ("a pilot", "clouds"),
    ("a bus", "a queue"),
    ("a taxi", "traffic"),
    ("a bridge", "a city"),
    ("a map", "a traveller"),
    ("a hotel", "a key"),
    ("a ship", "a storm"),
    ("a lighthouse", "fog"),
    ("an island", "a treasure"),
    ("a castle", "a queen"),
    ("a museum", "a statue"),
    ("a cinema", "popcorn"),
    ("a camera", "light"),
    ("a photograph", "memory"),
    ("a letter", "a stamp"),
    ("a telephone", "a voice"),
    ("a computer", "a keyboard"),
    ("a robot", "a battery"),
    ("a clock", "time"),
    ("a calendar", "plans"),
    ("a mirror", "a smile"),
    ("a chair", "a broken leg"),
    ("a lamp", "reading"),
    ("a bed", "sleep"),
    ("a pillow", "a dream"),
    ("a bath", "soap"),
    ("a toothbrush", "teeth"),
    ("a shirt", "a button"),
    ("a hat", "the sun"),
    ("gloves", "frost"),
    ("an umbrella", "puddles"),
    ("a pencil", "paper"),
    ("money", "a bank"),
    ("a shop", "a customer"),
    ("a tailor", "a needle"),
    ("a grandmother", "a recipe"),
    ("a baby", "a toy"),
    ("neighbours", "a fence"),
)

TEST_TOPICS = (
    ("a baker", "flour"),
    ("a kite", "a hill"),
    ("a fox", "a henhouse"),
    ("a desert", "camels"),
    ("a volcano", "ash"),
    ("a waiter", "a menu"),
    ("a guitar", "strings"),
    ("a snail", "lettuce"),
    ("skating", "balance"),
    ("a dentist", "fear"),
    ("a balloon", "a child"),
    ("chocolate", "a gift"),
    ("a tower", "stairs"),
    ("a candle", "a match"),
    ("a backpack", "a hike"),
    ("a sofa", "guests"),
    ("a newspaper", "headlines"),
    ("a wolf", "its pack"),
    ("a bakery", "a smell"),
    ("a firefighter", "a ladder"),
    ("a tree", "birds"),
    ("a fountain", "coins"),
)


def demo_prompts() -> list[DemoPrompt]:
    """All prompts in a fixed order: those for training, then those with held-out topics.

    Each topic meets `TRAIN_PER_TOPIC` (or `TEST_PER_TOPIC`) different templates, each with a
    length drawn anew, so that neither the template nor the topic tells the length.
    """
    rng = random.Random(SEED)
    train = _fill("train", TRAIN_TOPICS, TRAIN_PER_TOPIC, False, rng)
    return train + _fill("test", TEST_TOPICS, TEST_PER_TOPIC, True, rng)


def policy_prompts() -> list[DemoPrompt]:
    """Prompts for PPO in a fixed order: those to train on, then those with held-out topics.

    The same topics and templates; each topic meets `POLICY_PER_TOPIC` different pairs of a
    template and a length.
    """
    rng = random.Random(SEED + 1)
    kinds = list(itertools.product(TEMPLATES, POLICY_LENGTHS))
    return [
        DemoPrompt(f"{name}-{i:03d}-{j}", template.format(a=a, b=b, n=length), name == "eval")
        for name, topics in (("policy", TRAIN_TOPICS), ("eval", TEST_TOPICS))
        for i, (a, b) in enumerate(topics)
        for j, (template, length) in enumerate(rng.sample(kinds, POLICY_PER_TOPIC))
    ]


def _fill(
    name: str,
    topics: tuple[tuple[str, str], ...],
    per_topic: int,
    held_out: bool,
    rng: random.Random,
) -> list[DemoPrompt]:
    prompts: list[DemoPrompt] = []
    for a, b in topics:
        for template in rng.sample(TEMPLATES, per_topic):
            text = template.format(a=a, b=b, n=rng.choice(LENGTHS))
            prompts.append(DemoPrompt(f"{name}-{len(prompts):03d}", text, held_out))
    return prompts

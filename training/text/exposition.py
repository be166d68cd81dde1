"""Short explanations: a few plain sentences about rain, bread, machines and the like."""

import random

from training.text.lists import rules, sections, words
from training.text.phrase import capitalised, expand

FRAME_SHARE = 0.25


def topics() -> tuple[str, ...]:
    return tuple(sections("topics"))


def explain(rng: random.Random, topic: str | None = None) -> str:
    """Write one or two paragraphs about a topic, by default a random one, often AI."""
    known = topics()
    topic = topic or (known[0] if rng.random() < 0.18 else rng.choice(known[1:]))
    lines = list(sections("topics")[topic])
    first, rest = lines[0], lines[1:]
    kept = sorted(rng.sample(range(len(rest)), rng.randint(2, len(rest))))
    templates = [first, *(rest[index] for index in kept)]
    if rng.random() < FRAME_SHARE:
        templates.insert(0, rng.choice(words("frames")))
    slots = {"topic": topic}
    sentences = [capitalised(expand(template, slots, rules(), rng)) for template in templates]
    if len(sentences) > 4 and rng.random() < 0.4:
        return " ".join(sentences[:3]) + "\n\n" + " ".join(sentences[3:])
    return " ".join(sentences)

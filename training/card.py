"""Writes the model card: fills measured numbers and unselected samples into card.md.

`python -m training.card --help`. The prompts and seeds below were fixed before the model was
trained. Every reply is printed unchanged. The comments on the replies in card.md are written by
hand.
"""

import argparse
import json
import math
import sys
from pathlib import Path
from string import Template
from typing import Any

from training.chatter import Chatter, Reply, Sampling
from training.gguf_file import read_gguf
from training.keeping import (
    count_kept,
    held_out_subjects,
    named,
    places_and_things,
    with_unseen_names,
)
from training.shape import BUILD, MODEL

TEMPLATE = Path(__file__).parent / "card.md"
TEXTS = (
    ("Once upon a time", 1),
    ("Once upon a time", 2),
    ("Artificial intelligence will transform the future by", 1),
    ("Yesterday I found an old key", 1),
)
CHATS = (
    (("Hello",), 1),
    (("Who are you?",), 1),
    (("Tell me a story about a lighthouse",), 1),
    (("Tell me a story about a lighthouse",), 2),
    (("Write a short story about a fox named Pim.",), 1),
    (("Tell me a story about a submarine",), 1),
    (("What is the capital of France?",), 1),
    (("My brother is called Anselm. Do you like him?",), 1),
)
SUBJECTS = (
    ("Tell me a story about a lighthouse", ("lighthouse",)),
    ("Tell me a story about a storm", ("storm",)),
    ("Write a short story about a fox named Pim.", ("fox", "Pim")),
)
NUM_TRIES = 40


def measurements(log: Path) -> dict[str, Any]:
    """Return the last line of a finished run: steps, minutes, tokens and the held-out loss."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    finished = [line for line in lines if line.get("sequences_per_kind") == "all"]
    if not finished:
        sys.exit(f"{log} has no finished run: let `python -m training.train` finish")
    last: dict[str, Any] = finished[-1]
    return last


def loss_table(losses: dict[str, float]) -> str:
    """Format loss (nats per token) and perplexity by kind, with the mean over all kinds."""
    mean = sum(losses.values()) / len(losses)
    rows = [*losses.items(), ("all", mean)]
    lines = [f"| {kind} | {loss:.3f} | {math.exp(loss):.2f} |" for kind, loss in rows]
    return "\n".join(["| kind | loss (nats per token) | perplexity |", "|---|---|---|", *lines])


def samples(chatter: Chatter) -> str:
    parts: list[str] = []
    for prompt, seed in TEXTS:
        reply = chatter.complete(prompt, Sampling(seed=seed))
        parts.append(_sample(f"Continue “{prompt}”", seed, prompt + reply.text, reply))
    for turns, seed in CHATS:
        reply = chatter.chat(turns, Sampling(seed=seed))
        parts.append(_sample(f"“{turns[-1]}”", seed, reply.text, reply))
    return "\n\n".join(parts)


def subject_table(chatter: Chatter) -> str:
    """Format how often a story contains the requested words, and how often it ends by itself."""
    lines = ["| request | keeps to it | stops by itself |", "|---|---|---|"]
    for request, wanted in SUBJECTS:
        replies = [chatter.chat([request], Sampling(seed=seed)) for seed in range(NUM_TRIES)]
        kept = sum(all(word in reply.text for word in wanted) for reply in replies)
        stopped = sum(reply.stopped for reply in replies)
        lines.append(f"| {request} | {kept} of {NUM_TRIES} | {stopped} of {NUM_TRIES} |")
    return "\n".join(lines)


def kept_table(chatter: Chatter) -> str:
    """Format how often stories keep to drawn subjects and names, each request asked once."""
    rows = (
        ("grown-ups and animals with names", named()),
        ("animals with names that rill never read", with_unseen_names()),
        ("places and things", places_and_things()),
        ("the nine held-out subjects", held_out_subjects()),
    )
    lines = ["| stories about | the subject occurs | the name stays |", "|---|---|---|"]
    for title, requests in rows:
        kept = count_kept(chatter, requests)
        names = "" if kept.names is None else f"{kept.names} of {kept.asked}"
        lines.append(f"| {title} | {kept.subjects} of {kept.asked} | {names} |")
    return "\n".join(lines)


def _sample(title: str, seed: int, text: str, reply: Reply) -> str:
    ending = "stopped by itself" if reply.stopped else "cut at the token limit"
    quoted = "\n".join(f"> {line}".rstrip() for line in text.strip().splitlines())
    return f"**{title}** (seed {seed}, {reply.num_tokens} tokens, {ending})\n\n{quoted}"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.card", description="Measure and sample rill, and write its card."
    )
    parser.add_argument(
        "--model", type=Path, default=MODEL, help="the GGUF file (default: %(default)s)"
    )
    parser.add_argument(
        "--folder", type=Path, default=BUILD, help="the training folder (default: %(default)s)"
    )
    parser.add_argument(
        "--out", type=Path, help="the card's file (default: README.md next to the model)"
    )
    options = parser.parse_args()
    for needed in (options.model, options.folder / "train.jsonl"):
        if not needed.exists():
            sys.exit(f"there is no {needed}: train and export first (see training/README.md)")
    measured = measurements(options.folder / "train.jsonl")
    shape = read_gguf(options.model).shape
    chatter = Chatter(options.model)
    card = Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        parameters=f"{shape.num_parameters:,}",
        megabytes=f"{options.model.stat().st_size / 1e6:.1f}",
        layers=shape.layers,
        width=shape.width,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_width=shape.head_width,
        feed_forward=shape.feed_forward,
        vocabulary=f"{shape.vocabulary:,}",
        context=f"{shape.context:,}",
        minutes=f"{measured['minutes']:.0f}",
        steps=f"{measured['step']:,}",
        tokens=f"{measured['tokens'] / 1e6:,.0f}",
        corpus=f"{measured['corpus_tokens'] / 1e6:,.0f}",
        machine=measured["machine"],
        losses=loss_table(measured["held_out"]),
        samples=samples(chatter),
        subjects=subject_table(chatter),
        kept=kept_table(chatter),
    )
    out = options.out or options.model.parent / "README.md"
    out.write_text(card, encoding="utf-8")
    print(f"{out}: {len(card):,} characters")


if __name__ == "__main__":
    main()

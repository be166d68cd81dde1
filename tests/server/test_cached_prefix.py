"""Slots are chosen by the prompt that they have in their cache."""

from typing import Any

from tests.support.calling import create
from tests.support.servers import serve

TOPICS = ("a lighthouse by the sea", "two foxes in the snow", "an old clock maker")


def test_conversations_that_alternate_keep_their_caches() -> None:
    """Each goes on in the slot that has its turns so far, whichever slot was used last."""
    with serve(slots=len(TOPICS)) as server:
        turns: dict[str, list[dict[str, Any]]] = {
            topic: [{"role": "user", "content": f"{topic} " * 12}] for topic in TOPICS
        }
        sizes: dict[str, int] = {}
        for number, order in enumerate((TOPICS, TOPICS[::-1], TOPICS, TOPICS[1:] + TOPICS[:1])):
            for topic in order:
                answer = create(server, messages=turns[topic], max_tokens=8, temperature=0)
                usage = answer.usage
                if number:
                    cached = usage.prompt_tokens_details.cached_tokens
                    assert sizes[topic] <= cached < usage.prompt_tokens
                sizes[topic] = usage.prompt_tokens
                said = {"role": "assistant", "content": answer.choices[0].message.content}
                turns[topic] += [said, {"role": "user", "content": "Go on."}]

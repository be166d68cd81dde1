"""The turns of a conversation as chat templates know them: OpenAI's objects.

In: `Message`s. Out: dicts for an engine that renders them. What an assistant thought has a name of
its own in each engine.
"""

from typing import Any

from penstock.request import Message


def turn(message: Message, *, reasoning_as: str) -> dict[str, Any]:
    """One turn. `reasoning_as`: what the engine calls the reasoning of a turn."""
    turn: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.reasoning:
        turn[reasoning_as] = message.reasoning
    if message.tool_calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        turn["tool_call_id"] = message.tool_call_id
    return turn

"""Conversation turns in the form that chat templates read: OpenAI's message objects.

In: `Message`s. Out: dicts for the engine that renders the template. Each engine has its own name
for an assistant's reasoning.
"""

from typing import Any

from penstock.request import Message


def turn(message: Message, *, reasoning_as: str) -> dict[str, Any]:
    """Return one turn; `reasoning_as` is the engine's key for the turn's reasoning."""
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

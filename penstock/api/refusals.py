"""Refuses, in a sentence each, the parameters that change the answer and that a route cannot do.

In: a request's body and the refused parameters. Out: the body without those that ask for nothing,
or InvalidFields.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from penstock.api.tolerance import Notes, is_neutral
from penstock.errors import FieldError, InvalidFields


class Refusal(NamedTuple):
    """A sentence that refuses a parameter.

    `neutral` has the values that ask for nothing besides those that ask for nothing in any field;
    `meaningful` has values of those that do ask for something in this one.
    """

    reason: str
    neutral: tuple[object, ...] = ()
    meaningful: tuple[object, ...] = ()

    def asks(self, value: object) -> bool:
        """Return True if this value asks for something."""
        if any(type(each) is type(value) and each == value for each in self.meaningful):
            return True  # False is not 0 here
        return not (is_neutral(value) or value in self.neutral)


# Other servers' parameters that no route of this server can do.
REFUSED = {
    "prompt_embeds": Refusal("This server takes text and token ids only. Leave out prompt_embeds."),
    "use_beam_search": Refusal("This server cannot do a beam search. Leave out use_beam_search."),
    "logits_processors": Refusal("This server runs no code of clients. Leave it out."),
}


def without_refused(
    body: dict[str, Any], refused: Mapping[str, Refusal], notes: Notes
) -> dict[str, Any]:
    """Return the body without the refused parameters. Raises InvalidFields if one asks for more.

    With `notes.strict`, only null asks for nothing.
    """
    unsupported = [
        FieldError(name, "unsupported_field", f"{name}: {refused[name].reason}")
        for name, value in body.items()
        if name in refused and value is not None and (notes.strict or refused[name].asks(value))
    ]
    if unsupported:
        raise InvalidFields(unsupported)
    return {name: value for name, value in body.items() if name not in refused}

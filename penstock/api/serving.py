"""The served model as every API sees it: its names, and the features that its engine has.

In: the name and the fields that a request uses. Out: the model's information, or a `Problem` that
says what is not possible. Not known here: any API's own form of a request.
"""

from collections.abc import Callable, Mapping, Sequence

from penstock.api.tolerance import Notes
from penstock.engine.protocol import Feature, ModelInfo
from penstock.errors import FieldError, InvalidFields, Problem

# A model that lacks these features still answers the request as far as it can.
HINTS: frozenset[Feature] = frozenset({"reasoning_effort"})


def can_reason(info: ModelInfo) -> bool:
    """Return True if the model is known to reason before it answers."""
    return not {"reasoning_effort", "thinking_budget"}.isdisjoint(info.supports)


class ServedModel:
    """The one model of this server, under its name and its aliases.

    `names` has its name first. `info` describes the model once it is loaded. An engine that finds
    out the model's name itself gives it another name, which then comes first.
    """

    def __init__(self, names: Sequence[str], info: Callable[[], ModelInfo | None]) -> None:
        self.names = tuple(names)
        """The model's name and its aliases."""
        self._info = info

    def _learn_name(self) -> None:
        """Put the name that the engine gives the model before the others."""
        info = self._info()
        if info is not None and info.id not in self.names:
            self.names = (info.id, *self.names)

    @property
    def name(self) -> str:
        """Return the model's name, which is no alias."""
        return self.names[0]

    @property
    def loaded(self) -> ModelInfo | None:
        """Return the model's information, None while it is loading."""
        self._learn_name()
        return self._info()

    def info(self) -> ModelInfo:
        """Return the model's information. Raises Problem while it is loading."""
        info = self._info()
        if info is None:
            raise Problem(
                "engine_loading",
                "The model is still loading. Try again in a moment.",
                headers={"Retry-After": "1"},
            )
        return info

    def named(self, name: str | None) -> str:
        """Return the name that a request gives the model, or the model's own if it gives none.

        Raises Problem if the model has no such name.
        """
        if name in self.names:  # almost every request
            return name
        self._learn_name()
        if not name:
            return self.name
        if name not in self.names:
            raise Problem(
                "model_not_found",
                f"This server does not serve that model. It serves {', '.join(self.names)}.",
            )
        return name


def left_out(
    used: Mapping[str, Feature],
    info: ModelInfo,
    notes: Notes,
    *,
    hints: frozenset[Feature] = HINTS,
) -> list[str]:
    """Return the fields that are left out because the model lacks the feature, and note them.

    `used` maps a field to the feature that it needs. Only fields that need one of `hints` are left
    out. Raises InvalidFields for the others.
    """
    unknown = f"The {info.engine} engine does not support this field with this model."
    lacking, names = [], []
    for name, feature in used.items():
        if feature in info.supports:
            continue
        if feature in hints and not notes.strict:
            names.append(name)
            notes.ignore(name)
            continue
        message = f"{name}: {info.advice.get(feature, unknown)}"
        lacking.append(FieldError(name.partition(".")[0], "unsupported_field", message))
    if lacking:
        raise InvalidFields(lacking)
    return names

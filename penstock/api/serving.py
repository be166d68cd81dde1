"""The served models as every API sees them: their names, and the features of their engine.

In: the name and the fields that a request uses. Out: the model's information, or a `Problem` that
says what is not possible. Not known here: any API's own form of a request.
"""

from collections.abc import Callable, Mapping, Sequence

from penstock.api.tolerance import Notes
from penstock.engine.protocol import Feature, ModelInfo
from penstock.errors import FieldError, InvalidFields, Problem
from penstock.stream.unread import LOADING

# A model that lacks these features still answers the request as far as it can.
HINTS: frozenset[Feature] = frozenset({"reasoning_effort"})


def can_reason(info: ModelInfo) -> bool:
    """Return True if the model is known to reason before it answers."""
    return not {"reasoning_effort", "thinking_budget"}.isdisjoint(info.supports)


def llama_sampling(info: ModelInfo) -> dict[str, float]:
    """Return the model's own sampling, with the names that llama.cpp and Ollama use."""
    sampling = info.sampling
    return {
        "temperature": sampling.temperature,
        "top_k": sampling.top_k,
        "top_p": sampling.top_p,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repetition_penalty,
    }


class ServedModel:
    """The model of this server, under its name and its aliases, and perhaps the engine's others.

    `names` has its name first. `info` describes the model once it is loaded. An engine that finds
    out the model's name itself gives it another name, which then comes first. An engine that has
    several models adds the names of the others. A name that was once there stays: a request for a
    model that is away waits for it in the engine.
    """

    def __init__(self, names: Sequence[str], info: Callable[[], ModelInfo | None]) -> None:
        self.names = tuple(names)
        """The model's name and its aliases, then the names of other models."""
        self._stand_in = self.names[0]
        """The name until the engine has found out another one."""
        self._info = info
        self._seen: ModelInfo | None = None
        self._models: dict[str, ModelInfo] = {}
        """The models by the engine's names, also those that are away now."""
        self._first = ""
        """The engine's name for the model that requests without a name get."""
        self._has_several = False

    def _learn(self, info: ModelInfo) -> None:
        """Take over the names that the engine gives its models."""
        self._has_several = self._has_several or bool(info.models)
        self._first = self._first or info.id
        if not self._has_several:  # the only model may have another name now
            self._models, self._first = {}, info.id
        self._models |= {each.id: each for each in (info, *info.models)}
        if self._first not in self.names:
            self.names = (self._first, *self.names)
        self.names += tuple(name for name in self._models if name not in self.names)
        self._seen = info  # last: a body may be read in a thread meanwhile

    @property
    def listed(self) -> tuple[str, ...]:
        """Return the names to show: all, but not one that only stood for a model yet unknown."""
        if not self._models or self._stand_in in self._models:
            return self.names
        return tuple(name for name in self.names if name != self._stand_in)

    @property
    def name(self) -> str:
        """Return the model's name, which is no alias."""
        return self.names[0]

    def loaded(self, name: str = "") -> ModelInfo | None:
        """Return the information of the model `name`, None while it is loading."""
        info = self._info()
        if info is None:
            return None
        if info is not self._seen:
            self._learn(info)
        if not self._has_several:  # almost every server
            return info
        return self._models.get(name) or self._models[self._first]

    def info(self, name: str = "") -> ModelInfo:
        """Return the information of the model `name`; of the first if there is none of that name.

        Raises Problem while it is loading.
        """
        info = self.loaded(name)
        if info is None:
            raise Problem("engine_loading", LOADING, headers={"Retry-After": "1"})
        return info

    def models(self) -> dict[str, ModelInfo]:
        """Return every loaded model under its own name, the first one first."""
        if self.loaded() is None:
            return {}
        return {self.name_of(each): each for each in self._models.values()}

    def name_of(self, info: ModelInfo) -> str:
        """Return the name of a model: of the first one, its first name."""
        return self.name if info.id == self._first else info.id

    def named(self, name: str | None) -> str:
        """Return the name that a request gives a model, or the first model's if it gives none.

        Raises Problem if no model has such a name.
        """
        if name in self.names:  # almost every request
            return name
        self.loaded()
        if not name:
            return self.name
        if name not in self.names:
            raise Problem(
                "model_not_found",
                f"This server does not serve that model. It serves {', '.join(self.listed)}.",
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
    unknown = f"The {info.engine} engine does not support this field with this model. Leave it out."
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

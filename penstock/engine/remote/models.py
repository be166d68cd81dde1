"""The models that the upstreams serve: how the upstreams of each are talked to.

In: the profiles of the upstreams that serve a model. Out: a `Model`, and whether another upstream
fits. Not known here: health, load, sockets.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

import msgspec

from penstock.engine.protocol import ModelFacts, ModelInfo, UpstreamFacts
from penstock.engine.reasoning import marks_in, reasoning_features
from penstock.engine.remote.failures import UpstreamError
from penstock.engine.remote.profile import Level, Profile
from penstock.request import Sampling

# The assumed context of a server that does not say how long its context is.
UNKNOWN_CONTEXT = 131_072
# The name of a model to which nobody gives one.
UNNAMED = "remote"


@dataclass(eq=False)
class Model:
    """A model under its name here. An answer goes on only at another upstream of its model.

    `level` says whether its upstreams get token ids or texts. All of them have the same
    `vocabulary`. `marks` surround its reasoning. `slots` is the number of requests that its
    upstreams run at once.
    """

    name: str
    level: Level
    vocabulary: str
    marks: tuple[str, str] | None
    slots: int
    info: ModelInfo
    num_waiting: int = 0
    """How many requests wait for one of its upstreams."""
    max_waiting: int = 2**31
    """How many may: beside other models, no more than its part of the slots."""

    @property
    def context_length(self) -> int:
        """Return how many tokens a prompt and its answer may have together."""
        return self.info.context_length

    def describe(self, profiles: Sequence[Profile]) -> None:
        """Describe the model by its present upstreams. Its slots, level and context stay."""
        now = model_of(self.name, profiles, self.slots, self.level, self.context_length)
        slots = {"slots": self.info.slots, "own_slots": self.info.own_slots}
        self.info, self.marks = msgspec.structs.replace(now.info, **slots), now.marks

    def check(self, profile: Profile) -> None:
        """Raise UpstreamError if an upstream with this profile does not fit the others."""
        if self.level == "ids" and profile.vocabulary != self.vocabulary:
            raise UpstreamError("its model has another vocabulary than the other upstreams'")
        if profile.context_length and profile.context_length < self.context_length:
            raise UpstreamError(
                f"its context of {profile.context_length} tokens is shorter than the"
                f" {self.context_length} that Penstock promises"
            )


def model_of(
    name: str, profiles: Sequence[Profile], slots: int, level: Level, context_length: int
) -> Model:
    """Return the model that upstreams with these profiles serve.

    Token ids are used if `level` allows it and all of them can. `context_length` 0 means the least
    of their contexts.
    """
    first = profiles[0]
    if any(each.level == "text" for each in profiles):
        level = "text"
    marks = None
    supports = first.supports(level)
    for each in profiles[1:]:
        others = each.supports(level)
        supports = tuple(feature for feature in supports if feature in others)
    if level == "ids":
        marks = marks_in(first.chat_template)
        supports += reasoning_features(first.chat_template, has_effort=False)
    contexts = [each.context_length for each in profiles if each.context_length]
    info = ModelInfo(
        name,
        "remote",
        context_length or min(contexts, default=UNKNOWN_CONTEXT),
        slots,
        supports,
        first.vocabulary_size if level == "ids" else 0,
        sampling=first.sampling or Sampling(),
        facts=ModelFacts(chat_template=first.chat_template),
        upstreams=tuple(
            UpstreamFacts(each.kind, level, name_of(each.model), each.context_length, each.slots)
            for each in profiles
        ),
        vocabulary=f"ids {first.vocabulary}" if level == "ids" else "texts",
    )
    return Model(name, level, first.vocabulary, marks, slots, info)


def name_of(model: str) -> str:
    """Return the name of an upstream's model; llama.cpp's server names its file."""
    return PurePath(model).name.removesuffix(".gguf") if model.endswith(".gguf") else model

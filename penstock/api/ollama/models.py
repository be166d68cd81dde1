"""What Ollama's clients are told about the server and its one model.

In: the served model. Out: the objects of `version`, `tags`, `show` and `ps`. Penstock knows less
about a model than Ollama, which has made its files: a digest identifies the name, not the file.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any

from penstock.api.serving import ServedModel, can_reason, llama_sampling
from penstock.engine.protocol import ModelInfo

API_VERSION = "0.13.0"
"""The version of Ollama whose API this is. Clients refuse versions that are too old for them."""
LATEST = ":latest"
FOR_EVER = "9999-12-31T23:59:59Z"


def timestamp(moment: datetime | None = None) -> str:
    """Return a moment, by default now, as Ollama's clients parse it."""
    return (moment or datetime.now(UTC)).isoformat().replace("+00:00", "Z")


class Catalog:
    """The served model, under its names, as Ollama lists models."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model
        self._since = timestamp()

    def named(self, name: str | None) -> str:
        """Return the name that a request gives the model, or the model's own if it gives none.

        A name may end with `:latest`. Raises Problem if the model has no such name.
        """
        if name and name.removesuffix(LATEST) in self._model.names:
            return name
        return self._model.named(name)

    def info(self, name: str) -> ModelInfo:
        """Return the information of the model of this name, which may end with `:latest`.

        Raises Problem while it is loading.
        """
        return self._model.info(name if name in self._model.names else name.removesuffix(LATEST))

    def tags(self) -> dict[str, Any]:
        """Return the list of models."""
        loaded = self._model.loaded
        loaded()  # so that the names that the engine gives its models are among them
        return {"models": [self._entry(name, loaded(name)) for name in self._model.listed]}

    def running(self) -> dict[str, Any]:
        """Return the list of loaded models. They stay loaded for ever."""
        return {
            "models": [
                {
                    **self._entry(name, info),
                    "expires_at": FOR_EVER,
                    "size_vram": 0,
                    "context_length": info.context_length,
                }
                for name, info in self._model.models().items()
            ]
        }

    def show(self, name: str) -> dict[str, Any]:
        """Return the description of the model `name`. Raises Problem while it is loading."""
        info = self.info(name)
        name = self._model.name_of(info)
        family = info.facts.architecture or info.engine
        parameters = llama_sampling(info)
        return {
            "modelfile": f"FROM {name}\n",
            "parameters": "\n".join(f"{name:<30} {value}" for name, value in parameters.items()),
            "template": info.facts.chat_template,
            "details": _details(info),
            "model_info": {
                "general.architecture": family,
                "general.basename": name,
                "general.parameter_count": info.facts.num_parameters,
                f"{family}.context_length": info.context_length,
            },
            "capabilities": capabilities_of(info),
            "modified_at": self._since,
        }

    def _entry(self, name: str, info: ModelInfo | None) -> dict[str, Any]:
        shown = name if ":" in name else name + LATEST
        return {
            "name": shown,
            "model": shown,
            "modified_at": self._since,
            "size": 0 if info is None else info.facts.num_bytes,
            "digest": hashlib.sha256(shown.encode()).hexdigest(),
            "details": _details(info),
        }


def _details(info: ModelInfo | None) -> dict[str, Any]:
    family = "" if info is None else info.facts.architecture or info.engine
    return {
        "parent_model": "",
        "format": "",
        "family": family,
        "families": [family] if family else [],
        "parameter_size": "" if info is None else size_in_words(info.facts.num_parameters),
        "quantization_level": "",
    }


def size_in_words(num_parameters: int) -> str:
    """Return a number of parameters as Ollama writes it: 1.2M, 8.0B; "" if it is unknown."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if num_parameters >= size:
            return f"{num_parameters / size:.1f}{unit}"
    return str(num_parameters or "")


def capabilities_of(info: ModelInfo) -> list[str]:
    """Return what the model can do, in Ollama's words."""
    words = {
        "completion": True,
        "tools": "tools" in info.supports,
        "insert": "gap" in info.supports,
        "thinking": can_reason(info),
    }
    return [word for word, can in words.items() if can]

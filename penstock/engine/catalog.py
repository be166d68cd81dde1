"""The engines that Penstock offers by name, and how the server gets one.

In: the engine's name or import string, and the settings' values. Out: the model's place on this
machine and the engine's `EngineHandle`. Importing this module imports no engine: an engine is
imported only where it runs. Not known here: the command line, the settings' model, HTTP.
"""

import pkgutil
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from penstock.engine.protocol import Deliver, EngineHandle
from penstock.errors import StartError

BUILT_IN_MODEL = "rill"
DEFAULT_ENGINE = "llamacpp"
DEFAULT_SLOTS = 8
UPSTREAM_PATIENCE_S = 300.0
REMOTE_ENGINE = "remote"
_IMPORT_STRING = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_SERVES_A_MODEL = {"model": "model", "name": "model_name", "slots": "slots", "context": "context"}


@dataclass(frozen=True)
class EngineEntry:
    """An engine that can be started.

    `target` is its class as "module:Class". `arguments` maps each argument of its constructor that
    comes from a setting to the setting's name; every other argument is one of the engine's own
    parameters. If `reserves_arguments`, a parameter cannot replace a setting. `uses_model` says
    whether the engine loads `--model`; "optional" means that only the engine knows. `finder` is
    the import string of the function that finds the model before the engine starts, or "".
    `distribution` is the Python package that runs the model, or "". An engine that needs GPUs needs
    as many as the product of its parameters `gpu_factors`.
    An engine that asks other servers has a `patience`: requests wait so many seconds for the first
    of them. Its parameter `patience` replaces the number.
    """

    name: str
    target: str
    arguments: Mapping[str, str]
    reserves_arguments: bool = False
    uses_model: Literal["always", "optional", "never"] = "always"
    finder: str = ""
    distribution: str = ""
    gpu_factors: tuple[str, ...] = ()
    patience: float = 0.0

    def patience_with(self, params: Mapping[str, Any]) -> float:
        """Return how long a request waits for the model of an engine with `params`, in seconds.

        Returns 0 if none waits. The engine itself refuses a parameter that is no number.
        """
        asked = params.get("patience", self.patience)
        return asked if self.patience and isinstance(asked, int | float) else self.patience

    def num_gpus(self, params: Mapping[str, Any]) -> int:
        """Return how many GPUs an engine with `params` needs; 0 if it needs none.

        Raises StartError if a parameter that counts GPUs is no positive number.
        """
        number = 1 if self.gpu_factors else 0
        for name in self.gpu_factors:
            factor = params.get(name, 1)
            if not isinstance(factor, int) or factor < 1:
                raise StartError(f"{name} is not a number of GPUs.", f"For example: {name}=2")
            number *= factor
        return number

    def find_model(self, model: str) -> str:
        """Return `model` as the constructor takes it, downloaded if necessary.

        Raises StartError if there is no such model.
        """
        return str(pkgutil.resolve_name(self.finder)(model)) if self.finder else model

    def options(self, settings: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, Any]:
        """Return the constructor's arguments: from `settings`, by name, and the engine's `params`.

        Raises StartError if `params` contains an argument that a setting provides.
        """
        if self.reserves_arguments:
            for argument, setting in self.arguments.items():
                if argument in params:
                    flag = setting.replace("_", "-")
                    raise StartError(
                        f"{argument!r} is not a parameter of the engine.", f"Use --{flag}."
                    )
        return {name: settings[setting] for name, setting in self.arguments.items()} | {**params}


ENGINES = {
    entry.name: entry
    for entry in (
        EngineEntry(
            "llamacpp",
            "penstock.engine.llamacpp.engine:LlamaCpp",
            {**_SERVES_A_MODEL, "processes": "processes"},
            reserves_arguments=True,
            finder="penstock.engine.llamacpp.hub:find_model",
            distribution="xllamacpp",
        ),
        EngineEntry(
            "vllm",
            "penstock.engine.vllm.engine:Vllm",
            _SERVES_A_MODEL,
            reserves_arguments=True,
            finder="penstock.engine.vllm.hub:check_model",
            distribution="vllm",
            gpu_factors=("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
        ),
        EngineEntry(
            REMOTE_ENGINE,
            "penstock.engine.remote.engine:Remote",
            {
                "name": "model_name",
                "urls": "upstream",
                "key": "upstream_key",
                "slots": "slots_asked",
                "context": "context",
            },
            reserves_arguments=True,
            uses_model="never",
            patience=UPSTREAM_PATIENCE_S,
        ),
        EngineEntry(
            "mock",
            "penstock.engine.mock:Mock",
            {"name": "model_name", "interval": "mock_interval"},
            uses_model="never",
        ),
    )
}


def is_engine(name: str) -> bool:
    """Return whether `name` is in `ENGINES` or an import string ("package.module:Class")."""
    return name in ENGINES or _IMPORT_STRING.fullmatch(name) is not None


def entry_of(engine: str) -> EngineEntry:
    """Return the entry of an engine's name, or a new entry for an import string.

    An engine given by import string is named for its class and receives only its model's name;
    it takes everything else from its own parameters.
    """
    if engine in ENGINES:
        return ENGINES[engine]
    name = engine.partition(":")[2].lower()
    return EngineEntry(name, engine, {"name": "model_name"}, uses_model="optional")


def create_engine(
    engine: str,
    settings: Mapping[str, Any],
    params: Mapping[str, Any],
    *,
    hang_timeout: float,
    on_spawn: Callable[[int], None],
    on_stopped: Callable[[float], None],
    deliver: Deliver | None = None,
    pace: float = 0.0,
) -> EngineHandle:
    """Return the engine's handle, not yet started. Raises StartError if a parameter is invalid.

    `settings` holds the values of the settings in `EngineEntry.arguments`; `slots` 0 is
    `DEFAULT_SLOTS`, and `slots_asked` is the number as it is. `params` are the engine's own
    parameters. The other arguments are those of `SupervisedEngine`.
    """
    from penstock.engine.process.supervisor import SupervisedEngine

    entry = entry_of(engine)
    options = entry.options({**settings, "slots": settings["slots"] or DEFAULT_SLOTS}, params)
    return SupervisedEngine(
        entry.target, options, on_spawn, hang_timeout, on_stopped, deliver, pace
    )

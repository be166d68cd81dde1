"""Starts llama.cpp's own server in this process, with a model and a context that fit the machine.

In: the model's file, what the operator asked for, and the path of a Unix socket. Out: the server,
which listens there and nowhere else. Not known here: requests.
"""

import difflib
import os
from typing import Any, NamedTuple

from penstock.engine.llamacpp.gguf import context_length
from penstock.engine.llamacpp.http import MAX_ASKING
from penstock.engine.llamacpp.hub import size_of
from penstock.engine.llamacpp.memory import available_memory, memory_to_leave
from penstock.errors import StartError

NUM_PROBES = 1  # at once
# Errors only: the supervisor reads them to explain a death. More would be ten lines per request.
LOG_ERRORS = 1


class Wanted(NamedTuple):
    """The operator's settings for the model (see `LlamaCpp`)."""

    model: str
    slots: int
    context: int
    processes: int
    params: dict[str, object]


class Loaded(NamedTuple):
    """xllamacpp's server, which stops with its last reference."""

    server: Any
    has_one_cache: bool
    """True if all slots share one context (kv_unified)."""


def load(wanted: Wanted, socket: str) -> Loaded:
    """Load the model, which can take minutes. Raises StartError if it fails."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = wanted.model
    params.n_parallel = wanted.slots
    if "n_ctx" not in wanted.params:
        _set_context(params, wanted)
    params.cpuparams.n_threads = max(1, num_usable_cores() - 1)
    params.n_threads_http = wanted.slots + MAX_ASKING + NUM_PROBES
    params.cache_ram_mib = 0  # otherwise llama.cpp caches the states of idle slots, up to 8 GiB
    params.ui = False
    params.verbosity = LOG_ERRORS
    params.sse_ping_interval = -1
    for name, value in wanted.params.items():
        set_param(params, name, value)
    # No parameter may change these: the socket stays private, the answer complete.
    params.hostnames = [socket]
    params.endpoint_slots = True
    params.ctx_shift = False
    has_one_cache = params.kv_unified
    try:
        return Loaded(xllamacpp.Server(params), has_one_cache)
    except RuntimeError as error:
        # The reason is only on standard error, which the supervisor reads.
        raise StartError(
            "llama.cpp could not load the model.",
            "Is the GGUF file complete, and is there enough memory for it?",
        ) from error


def _set_context(params: Any, wanted: Wanted) -> None:
    """Set the context of each slot. Raises StartError if it is larger than the model's own."""
    import xllamacpp

    if wanted.context:
        own = context_length(wanted.model)
        if own and wanted.context > own:
            raise StartError(
                f"--context {wanted.context} is larger than the model's own context, {own} tokens.",
                f"Give at most {own}, or 0 for the largest context that fits the memory.",
            )
        set_param(params, "n_ctx", wanted.context * wanted.slots)
        return
    params.n_ctx = 0  # llama.cpp chooses
    devices = xllamacpp.get_device_info()
    if any(each["type"].name.endswith("GPU") for each in devices):
        return
    total = max(each["memory_total"] for each in devices)
    leave = memory_to_leave(total, available_memory(total), size_of(wanted.model), wanted.processes)
    params.fit_params_target = [leave] * len(params.fit_params_target)


def num_usable_cores() -> int:
    """Return the number of processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux: respects a container's limits
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def set_param(params: object, name: str, value: object) -> None:
    """Set a parameter of llama.cpp by name. Raises StartError if the name or value is invalid."""
    *path, last = name.split(".")
    if not path and not hasattr(params, last) and hasattr(params.cpuparams, last):  # type: ignore[attr-defined] # xllamacpp has no types
        path = ["cpuparams"]
    owner: Any = params
    try:
        for part in path:
            owner = getattr(owner, part)
        getattr(owner, last)
    except AttributeError:
        names = [n for n in dir(owner) if not n.startswith("_")]
        near = difflib.get_close_matches(last, names, n=1)
        hint = f"Did you mean {near[0]}?" if near else "xllamacpp's README lists the names."
        raise StartError(f"llama.cpp has no parameter {name!r}.", hint) from None
    try:
        setattr(owner, last, value)
    except (TypeError, ValueError, OverflowError) as error:
        raise StartError(
            f"llama.cpp does not take this value for {name!r}: {error}.", "Give another value."
        ) from None

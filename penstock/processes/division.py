"""Divides the machine and the settings among several server processes.

In: the settings. Out: each process's share: its settings, its processor cores, and the variables
that name its GPUs. If there are more processes than fit, a StartError says how many do.
"""

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from penstock.engine.catalog import entry_of
from penstock.errors import StartError
from penstock.observe.memory import available_bytes
from penstock.settings import MIN_MEMORY_LIMIT, Settings

# Without --memory-limit, all processes together may use this part of the machine's memory (see
# `server`).
DEFAULT_MEMORY_PART = 4
# Each lists the GPUs that programs may use: NVIDIA's, and AMD's.
GPU_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")
DEVICES = Path("/dev")
Item = TypeVar("Item")
TOPOLOGY = "/sys/devices/system/cpu/cpu{}/topology/{}"


@dataclass(frozen=True)
class Share:
    """What one process gets. No `cores` means that it may use all of them.

    A private log is of no use to anybody after the last process has ended.
    """

    settings: Settings
    cores: tuple[int, ...]
    environment: Mapping[str, str]
    has_private_log: bool = False

    def with_private_log(self, folder: Path) -> "Share":
        """Return this share with a log in `folder`."""
        settings = self.settings.model_copy(update={"log": str(folder)})
        return dataclasses.replace(self, settings=settings, has_private_log=True)


def divide(settings: Settings) -> list[Share]:
    """Return the share of each of `settings.processes`. Raises StartError if they do not fit."""
    number = settings.processes
    own = settings.model_copy(update=_limits_for_each(settings))
    variable, gpus = visible_gpus()
    needed = entry_of(settings.engine).num_gpus(settings.engine_params)
    if gpus and needed:
        if number * needed > len(gpus):
            has = f"{len(gpus)} GPUs, and the engine of each process needs {needed}"
            raise _too_many(number, len(gpus) // needed, f"The machine has {has}.")
        firsts = range(0, number * needed, needed)
        return [Share(own, (), {variable: ",".join(gpus[i : i + needed])}) for i in firsts]
    cores = _divided(_usable_cores(), number)
    if not all(cores):
        fit = len(_usable_cores())
        raise _too_many(number, fit, f"The machine has {fit} processor cores for them.")
    # An engine that can also compute without a GPU has its own GPUs only if there are enough.
    groups = _divided(gpus, number)
    if not all(groups):
        return [Share(own, tuple(each), {}) for each in cores]
    return [
        Share(own, tuple(each), {variable: ",".join(group)})
        for each, group in zip(cores, groups, strict=True)
    ]


def _limits_for_each(settings: Settings) -> dict[str, Any]:
    """Return the settings that hold for all processes together, divided among them."""
    number = settings.processes
    memory = settings.memory_limit_bytes or available_bytes() // DEFAULT_MEMORY_PART
    if memory // number < MIN_MEMORY_LIMIT:
        least = f"a process needs at least {MIN_MEMORY_LIMIT >> 20}M"
        raise _too_many(
            number,
            memory // MIN_MEMORY_LIMIT,
            f"They share --memory-limit, {memory >> 20}M, and {least}.",
        )
    return {
        "memory_limit": str(memory // number),
        "retain_bytes": settings.retain_bytes // number,
        "retain_responses_bytes": settings.retain_responses_bytes // number,
        "max_connections": -(-settings.max_connections // number),  # rounded up, like the next
        "max_queue": -(-settings.max_queue // number),
    }


def _too_many(number: int, fit: int, why: str) -> StartError:
    next_step = f"--processes {fit}" if fit > 1 else "one process: leave out --processes"
    return StartError(f"{number} server processes do not fit. {why}", f"Use {next_step}.")


def visible_gpus() -> tuple[str, list[str]]:
    """Return the variable that names the GPUs that an engine may use, and their names in it."""
    for variable in GPU_VARIABLES:
        if (given := os.environ.get(variable)) is not None:
            names = [each.strip() for each in given.split(",")]
            return variable, [each for each in names if each and each != "-1"]
    # Only NVIDIA GPUs are counted: an AMD device file does not tell whether an engine can use it.
    found = [each for each in DEVICES.glob("nvidia[0-9]*") if each.name[6:].isdigit()]
    return GPU_VARIABLES[0], [str(each) for each in range(len(found))]


def _usable_cores() -> list[int]:
    """Return the processor cores that this process may use, neighbors beside each other.

    The threads of one core and the cores of one processor are neighbors, so that no two processes
    share them.
    """
    if hasattr(os, "sched_getaffinity"):  # Linux
        return sorted(os.sched_getaffinity(0), key=_place_of)
    return list(range(os.cpu_count() or 1))


def _place_of(core: int) -> tuple[int, int, int]:
    return _topology(core, "physical_package_id"), _topology(core, "core_id"), core


def _topology(core: int, name: str) -> int:
    try:
        return int(Path(TOPOLOGY.format(core, name)).read_text(encoding="ascii"))
    except (OSError, ValueError):  # a container may hide it
        return 0


def _divided(items: Sequence[Item], number: int) -> list[Sequence[Item]]:
    """Return `items` as `number` groups of neighbors whose sizes differ by one at most."""
    bounds = [each * len(items) // number for each in range(number + 1)]
    return [items[begin:end] for begin, end in itertools.pairwise(bounds)]

"""How much of the machine's memory llama.cpp may use for the slots' contexts.

In: the model file's size. Out: the memory in bytes that llama.cpp must leave free when it chooses
the context, for its parameter `fit_params_target`. llama.cpp itself knows how much a token needs.
"""

import sys
from pathlib import Path

# The limits of a container (cgroups version 2 and 1).
LIMITS = ("memory.max", "memory/memory.limit_in_bytes")


def memory_to_leave(total: int, available: int, model: int, num_engines: int = 1) -> int:
    """Return how many of the `total` bytes to leave: all except the model and half of the rest.

    The rest is the `available` memory without the size of the `model`; `num_engines` share its
    half. (They share the model's pages, too.) All numbers are in bytes.
    """
    rest = max(0, available - model)
    return max(0, total - model - rest // 2 // num_engines)


def available_memory(total: int) -> int:
    """Return the bytes of memory that programs can still get, at most the container's limit.

    Returns `total` on systems other than Linux.
    """
    if sys.platform != "linux":
        return total
    found = [total]
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    found += [int(each.split()[1]) * 1024 for each in lines if each.startswith("MemAvailable:")]
    for name in LIMITS:
        try:
            found.append(int(Path("/sys/fs/cgroup", name).read_text(encoding="ascii")))
        except (OSError, ValueError):  # there is no limit ("max")
            continue
    return min(found)

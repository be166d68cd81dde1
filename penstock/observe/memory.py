"""The memory of this process and of this machine, as the system counts it.

In: Linux' own files. Out: bytes, or None where the system does not tell.
"""

import ctypes
import functools
import os
from collections.abc import Iterator
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


def resident_bytes() -> int | None:
    """Return the resident memory of this process, in bytes; None except on Linux."""
    file = _statm()
    if file < 0:
        return None
    return int(os.pread(file, 256, 0).split()[1]) * os.sysconf("SC_PAGE_SIZE")


@functools.cache
def _statm() -> int:
    """Return the open file with this process's memory, -1 if there is none.

    It stays open: reading it then takes a single system call.
    """
    try:
        return os.open("/proc/self/statm", os.O_RDONLY)
    except OSError:
        return -1


def available_bytes() -> int:
    """Return the memory that this machine has, or that its cgroup may use, in bytes."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([machine, *_cgroup_limits()])


def _cgroup_limits() -> Iterator[int]:
    """Yield the limits of this process's cgroups, of both versions."""
    try:
        lines = Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers not in ("", "memory"):
            continue
        name = "memory.limit_in_bytes" if controllers else "memory.max"
        group = CGROUPS / controllers / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(CGROUPS):
                break
            try:
                text = (folder / name).read_text(encoding="ascii").strip()
            except OSError:
                continue
            if text.isdigit():  # else it is "max"
                yield int(text)


def return_freed_memory() -> None:
    """Give memory that was freed back to the system, if the C library can (glibc)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)

"""The lives of a folder: within one of them, no write is lost.

Without a wait for the disk, a write is in the kernel's memory at first. So a life is one run of the
kernel: whatever processes do, the kernel keeps their writes. A power loss begins another life, and
so does a folder that is moved to another machine.
"""

import secrets
import subprocess
from pathlib import Path

_LINUX = Path("/proc/sys/kernel/random/boot_id")
_MACOS = ("/usr/sbin/sysctl", "-n", "kern.bootsessionuuid")


def boot_id() -> str:
    """Return the name of this run of the kernel.

    If the system has no such name, each process gets a random one. Then no process relies on the
    writes of an earlier process.
    """
    try:
        return _LINUX.read_text(encoding="ascii").strip()
    except OSError:
        pass
    try:
        return subprocess.check_output(  # noqa: S603 - no outside input
            _MACOS, text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return secrets.token_hex(16)

"""Run Penstock as on a machine whose clock is an hour ahead (see `servers.serve`).

Only the wall clock is. Monotonic clocks of two machines have nothing in common anyway.
"""

import time

HOUR_S = 3600.0
_right = time.time
time.time = lambda: _right() + HOUR_S

if __name__ == "__main__":
    from penstock.cli.main import main

    main()

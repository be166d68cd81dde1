"""A server that gives up an unfinished head after three seconds instead of ten.

It looks at its certificate five times a second.

python -m tests.wire.short serve --engine mock ...
"""

import functools
import sys

from penstock import server
from penstock.cli.main import main
from penstock.web import granian
from penstock.web.http1.server import Timeouts

HEAD_TIMEOUT_S = 3  # a machine may stand still for a second

if __name__ == "__main__":
    vars(server)["Timeouts"] = functools.partial(Timeouts, head=HEAD_TIMEOUT_S)
    granian.HEADER_TIMEOUT_S = HEAD_TIMEOUT_S
    granian.CERTIFICATE_CHECK_S = 0.2
    sys.argv[0] = "penstock"
    main()

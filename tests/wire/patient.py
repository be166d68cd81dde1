"""A server that gives a head a minute instead of ten seconds.

python -m tests.wire.patient serve --engine mock ...
"""

import functools
import sys

from penstock import server
from penstock.cli.main import main
from penstock.web import granian
from penstock.web.http1.server import Timeouts

HEAD_TIMEOUT_S = 60

if __name__ == "__main__":
    vars(server)["Timeouts"] = functools.partial(Timeouts, head=HEAD_TIMEOUT_S)
    granian.HEADER_TIMEOUT_S = HEAD_TIMEOUT_S
    sys.argv[0] = "penstock"
    main()

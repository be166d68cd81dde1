"""A server that gives up an unfinished head after a second instead of ten.

python -m tests.wire.short serve --engine mock ...
"""

import sys

from penstock.cli.main import main
from penstock.web import granian

HEAD_TIMEOUT_S = 1

if __name__ == "__main__":
    granian.HEADER_TIMEOUT_S = HEAD_TIMEOUT_S
    sys.argv[0] = "penstock"
    main()

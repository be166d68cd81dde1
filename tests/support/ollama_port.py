"""A server whose port for Ollama's clients is free in this test.

OLLAMA_PORT=4711 python -m tests.support.ollama_port serve --ollama ...
"""

import os
import sys

from penstock import settings

if __name__ == "__main__":
    settings.OLLAMA_PORT = int(os.environ["OLLAMA_PORT"])
    from penstock.cli.main import main

    sys.argv[0] = "penstock"
    main()

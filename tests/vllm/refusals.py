"""Checks configurations of vLLM: one line of JSON on standard input for each.

`python -m tests.vllm.refusals` checks all in one process, because importing vLLM takes ten seconds.
"""

import json
import sys


def main() -> None:
    """Write a line [error, hint] for each configuration, or [] if it is valid."""
    from penstock.engine.vllm.chats import Chats
    from penstock.engine.vllm.engine import configure
    from penstock.errors import StartError

    answers = sys.stdout
    sys.stdout = sys.stderr  # vLLM may write to standard output
    for line in sys.stdin:
        try:
            engine_args = json.loads(line)
            tool_parser = engine_args.pop("tool_call_parser", None)
            _, config = configure(engine_args, tool_parser)
            Chats(config, tool_parser)
            answer = []
        except StartError as error:
            answer = [str(error), error.hint]
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

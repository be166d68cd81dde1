"""What Penstock says of vLLM's configurations, each a line of JSON on standard input.

`python -m tests.vllm.refusals`: all in one process, as importing vLLM takes ten seconds.
"""

import json
import sys


def main() -> None:
    """Write for each [what is wrong, what to do]; where nothing is wrong, what is advised to have
    tools, if anything."""
    from penstock.engine.vllm.chats import Chats
    from penstock.engine.vllm.engine import configure
    from penstock.errors import StartError

    answers = sys.stdout
    sys.stdout = sys.stderr  # vLLM may write to it
    for line in sys.stdin:
        try:
            engine_args = json.loads(line)
            tool_parser = engine_args.pop("tool_call_parser", None)
            _, config = configure(engine_args, tool_parser)
            answer = list(Chats(config, tool_parser).advice(takes_tools=True).values())
        except StartError as error:
            answer = [str(error), error.hint]
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

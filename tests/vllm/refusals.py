"""What Penstock says of vLLM's configurations, each a line of JSON on standard input.

`python -m tests.vllm.refusals`: all in one process, as importing vLLM takes ten seconds.
"""

import json
import sys


def main() -> None:
    """Write for each [what is wrong, what to do], or [] where nothing is wrong."""
    from penstock.engine.vllm import configure
    from penstock.errors import StartError

    answers = sys.stdout
    sys.stdout = sys.stderr  # vLLM may write to it
    for line in sys.stdin:
        answer: list[str] = []
        try:
            engine_args = json.loads(line)
            configure(engine_args, engine_args.pop("tool_call_parser", None))
        except StartError as error:
            answer = [str(error), error.hint]
        print(json.dumps(answer), file=answers)


if __name__ == "__main__":
    main()

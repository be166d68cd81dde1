"""The figures of admission, keys and limits, each by one command, on servers of its own.

    python -m benchmarks.admission overload --times 10 --seconds 60
    python -m benchmarks.admission fairness --seconds 60
    python -m benchmarks.admission cost --number 3000
    python -m benchmarks.admission inputs
    python -m benchmarks.admission fuzz --examples 300

Each prints a table, and a line of JSON with the machine, the versions, the command and the date.
"""

import argparse
from collections.abc import Callable, Coroutine

import uvloop

from benchmarks.admission import cost, fairness, inputs, overload
from benchmarks.hold.report import Figures, prepare_client, show


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.admission",
        description="The figures of admission, keys and limits.",
    )
    commands = parser.add_subparsers(dest="what", required=True)
    each = commands.add_parser("overload", help="more requests than there is room for")
    each.add_argument("--times", type=float, default=10.0)
    each.add_argument("--seconds", type=float, default=60.0)
    each = commands.add_parser("fairness", help="a quiet key beside one that floods")
    each.add_argument("--seconds", type=float, default=60.0)
    each = commands.add_parser("cost", help="processor time of a refused request")
    each.add_argument("--number", type=int, default=3000)
    commands.add_parser("inputs", help="the table of bad inputs")
    each = commands.add_parser("fuzz", help="requests made up from the OpenAPI page")
    each.add_argument("--examples", type=int, default=300)

    arguments = vars(parser.parse_args())
    what = arguments.pop("what")
    measures: dict[str, Callable[..., Coroutine[None, None, Figures]]] = {
        "overload": overload.measure,
        "fairness": fairness.measure,
        "cost": cost.measure,
        "inputs": inputs.table,
        "fuzz": inputs.fuzz,
    }
    prepare_client()
    show(f"admission: {what}", uvloop.run(measures[what](**arguments)))


if __name__ == "__main__":
    main()

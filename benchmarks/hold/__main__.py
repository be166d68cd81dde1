"""The figures of streams that hold, each by one command, on a server of its own.

    python -m benchmarks.hold cuts --number 10000
    python -m benchmarks.hold kills --number 200 --streams 32 --engine mock
    python -m benchmarks.hold kills --number 200 --streams 32 --engine llamacpp
    python -m benchmarks.hold disconnects --number 1000
    python -m benchmarks.hold held --streams 2000 --minutes 5
    python -m benchmarks.hold churn --number 10000
    python -m benchmarks.hold stalled --readers 50
    python -m benchmarks.hold drain --streams 200

Each prints a table, and a line of JSON with the machine, the versions, the command and the date.
Exit code 1 where an invariant was broken (see tests/faults/checker.py).
"""

import argparse
from collections.abc import Callable, Coroutine

import uvloop

from benchmarks.hold import churn, cuts, disconnects, drain, held, kills, stalled
from benchmarks.hold.report import Figures, prepare_client, show


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hold",
        description="The figures of streams that hold.",
    )
    commands = parser.add_subparsers(dest="what", required=True)

    def command(what: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(what, help=text, description=text)

    each = command("cuts", "random cuts with resume: lost, duplicated, reordered")
    each.add_argument("--number", type=int, default=10_000)
    each = command("kills", "engine kills under streams: failed streams, the pause")
    each.add_argument("--number", type=int, default=200)
    each.add_argument("--streams", type=int, default=32)
    each.add_argument("--engine", choices=("mock", "llamacpp"), default="mock")
    each = command("disconnects", "client gone until cancelled in the engine")
    each.add_argument("--number", type=int, default=1000)
    each = command("held", "streams open at once: drops, memory per stream")
    each.add_argument("--streams", type=int, default=2000)
    each.add_argument("--minutes", type=float, default=5.0)
    each = command("churn", "connect-and-abort cycles: memory growth")
    each.add_argument("--number", type=int, default=10_000)
    each = command("stalled", "readers that never read: when dropped, what they hold")
    each.add_argument("--readers", type=int, default=50)
    each = command("drain", "SIGTERM under streams")
    each.add_argument("--streams", type=int, default=200)

    arguments = vars(parser.parse_args())
    what = arguments.pop("what")
    measures: dict[str, Callable[..., Coroutine[None, None, Figures]]] = {
        "cuts": cuts.measure,
        "kills": kills.measure,
        "disconnects": disconnects.measure,
        "held": held.measure,
        "churn": churn.measure,
        "stalled": stalled.measure,
        "drain": drain.measure,
    }
    prepare_client()
    figures = uvloop.run(measures[what](**arguments))
    show(what, figures)
    raise SystemExit(1 if figures["breaches"] else 0)


if __name__ == "__main__":
    main()

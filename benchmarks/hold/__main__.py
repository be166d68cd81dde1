"""Measures whether streams hold, one figure per command, each on a server of its own.

    python -m benchmarks.hold cuts --number 10000
    python -m benchmarks.hold kills --number 200 --streams 32 --engine mock
    python -m benchmarks.hold kills --number 200 --streams 32 --engine llamacpp
    python -m benchmarks.hold disconnects --number 1000
    python -m benchmarks.hold held --streams 2000 --minutes 5
    python -m benchmarks.hold churn --number 10000
    python -m benchmarks.hold stalled --readers 50
    python -m benchmarks.hold drain --streams 200
    python -m benchmarks.hold crowd --silent 10000 --streams 5000 --rate 10 --minutes 10

Each command prints a table, and a line of JSON with the machine, the versions, the command and the
date. The exit code is 1 if an invariant was broken (see tests/faults/checker.py).
"""

from benchmarks.hold import churn, crowd, cuts, disconnects, drain, held, kills, stalled
from benchmarks.report import FigureCommands


def main() -> None:
    commands = FigureCommands("benchmarks.hold", "Measure whether streams hold.")
    each = commands.add(
        "cuts", cuts.measure, "Cut connections at random and resume: lost, duplicated, reordered."
    )
    each.add_argument("--number", type=int, default=10_000, help="cuts")
    each = commands.add(
        "kills", kills.measure, "Kill the engine under running streams: failed streams, pauses."
    )
    each.add_argument("--number", type=int, default=200, help="kills")
    each.add_argument("--streams", type=int, default=32, help="streams at once")
    each.add_argument("--engine", choices=("mock", "llamacpp"), default="mock", help="the engine")
    each = commands.add(
        "disconnects", disconnects.measure, "Disconnect clients: time until the engine cancels."
    )
    each.add_argument("--number", type=int, default=1000, help="clients")
    each = commands.add("held", held.measure, "Hold streams open: drops, memory per stream.")
    each.add_argument("--streams", type=int, default=2000, help="streams at once")
    each.add_argument("--minutes", type=float, default=5.0, help="how long to hold them")
    each = commands.add("churn", churn.measure, "Connect and abort repeatedly: memory growth.")
    each.add_argument("--number", type=int, default=10_000, help="connections")
    each = commands.add(
        "stalled", stalled.measure, "Readers that stop reading: when dropped, bytes held."
    )
    each.add_argument("--readers", type=int, default=50, help="stalled readers")
    each = commands.add("drain", drain.measure, "Send SIGTERM under running streams.")
    each.add_argument("--streams", type=int, default=200, help="streams at once")
    each = commands.add(
        "crowd", crowd.measure, "Hold thousands of streams: memory of a silent one, drops."
    )
    each.add_argument("--silent", type=int, default=10_000, help="streams without a token")
    each.add_argument("--streams", type=int, default=5000, help="streams with tokens")
    each.add_argument("--rate", type=float, default=10.0, help="tokens per second of each stream")
    each.add_argument("--minutes", type=float, default=10.0, help="how long to hold them")
    raise SystemExit(1 if commands.run()["breaches"] else 0)


if __name__ == "__main__":
    main()

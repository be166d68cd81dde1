"""Measures admission, keys and limits, one figure per command, each on servers of its own.

    python -m benchmarks.admission overload --times 10 --seconds 60
    python -m benchmarks.admission fairness --seconds 60
    python -m benchmarks.admission cost --number 3000
    python -m benchmarks.admission inputs
    python -m benchmarks.admission fuzz --examples 300

Each command prints a table, and a line of JSON with the machine, the versions, the command and the
date.
"""

from benchmarks.admission import cost, fairness, inputs, overload
from benchmarks.report import FigureCommands


def main() -> None:
    commands = FigureCommands(
        "benchmarks.admission", "Measure admission, keys and limits.", title="admission: "
    )
    each = commands.add("overload", overload.measure, "Send more requests than the server can do.")
    each.add_argument("--times", type=float, default=10.0, help="rate, as a multiple of capacity")
    each.add_argument("--seconds", type=float, default=60.0, help="how long to send")
    each = commands.add("fairness", fairness.measure, "A quiet key next to a flooding key.")
    each.add_argument("--seconds", type=float, default=60.0, help="duration of each of the 3 runs")
    each = commands.add("cost", cost.measure, "The CPU time of a refused request.")
    each.add_argument("--number", type=int, default=3000, help="requests of each kind")
    commands.add("inputs", inputs.table, "Run the table of bad inputs.")
    each = commands.add("fuzz", inputs.fuzz, "Send requests generated from the OpenAPI schema.")
    each.add_argument("--examples", type=int, default=300, help="examples for each operation")
    commands.run()


if __name__ == "__main__":
    main()

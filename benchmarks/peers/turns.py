"""Everything that a run has measured, turn by turn, each turn with the noise before it."""

import sys
from collections import Counter

from benchmarks.noise import Noise
from benchmarks.overhead.server import PinnedServer
from benchmarks.peers.measuring import name
from benchmarks.peers.ratios import Results
from benchmarks.plot import format_value
from benchmarks.report import Figures, Numbers, medians


class Turns:
    """The turns of a run. A turn is one server under one load."""

    def __init__(self, noise: Noise) -> None:
        self.noise = noise
        self.each: list[Figures] = []
        self.failures: list[str] = []
        self.versions: dict[str, str] = {}
        self._sample: Numbers = {}
        self._counts: Counter[tuple[str, str]] = Counter()

    def begin(self) -> None:
        """Take a sample of the machine's noise."""
        self._sample = self.noise.sample()

    def add(self, load: str, server: str, figures: Numbers) -> None:
        """Add a turn's figures, and print them."""
        self.each.append(
            {
                "load": load,
                "server": server,
                "repeat": self._count(load, server),
                "noise": self._sample,
                "figures": figures,
            }
        )
        values = "  ".join(f"{name(key)} {format_value(v)}" for key, v in figures.items())
        print(f"{load:28}  {server:34}{values}", file=sys.stderr, flush=True)

    def add_failure(self, load: str, server: str, error: Exception) -> None:
        """Note that a server did not hold a load, and print it."""
        self._count(load, server)
        self.failures.append(f"{load}: {server} failed: {error!r}")
        print(self.failures[-1], file=sys.stderr, flush=True)

    def add_versions(self, server: PinnedServer, peer: str) -> None:
        """Note the versions of a server's packages."""
        for package, each in server.versions.items():
            # vLLM's environment can have other versions of the same packages.
            if self.versions.setdefault(package, each) != each:
                self.versions[f"{package} ({peer})"] = each

    def repeats(self) -> list[Results]:
        """Return the figures of each repeat."""
        found: dict[int, Results] = {}
        for turn in self.each:
            results = found.setdefault(turn["repeat"], {})
            results.setdefault(turn["load"], {})[turn["server"]] = turn["figures"]
        return list(found.values())

    def medians(self) -> Results:
        """Return the medians over the turns."""
        rows: dict[str, dict[str, list[Numbers]]] = {}
        for turn in self.each:
            by_server = rows.setdefault(turn["load"], {})
            by_server.setdefault(turn["server"], []).append(turn["figures"])
        return {
            load: {server: medians(each) for server, each in by_server.items()}
            for load, by_server in rows.items()
        }

    def _count(self, load: str, server: str) -> int:
        """Return how often this server has had this load before."""
        self._counts[load, server] += 1
        return self._counts[load, server] - 1

"""Reads a server's /metrics with Prometheus' own parser."""

import time
from collections.abc import Callable

from prometheus_client.parser import text_string_to_metric_families

from tests.support.raw import ask, request
from tests.support.servers import RunningServer

PATIENCE_S = 60.0


class Scrape:
    """The samples of one scrape of /metrics, with these further headers."""

    def __init__(self, server: RunningServer, *headers: str) -> None:
        answer = ask(server.port, request("GET", "/metrics", *headers), server.address[0])
        assert answer.status == 200
        self.text = answer.body.decode()
        self._samples = [
            sample
            for family in text_string_to_metric_families(self.text)
            for sample in family.samples
        ]

    def __call__(self, name: str, **labels: str) -> float:
        """Return the sum of all samples with this name and these labels."""
        return sum(
            sample.value
            for sample in self._samples
            if sample.name == name and labels.items() <= sample.labels.items()
        )

    def by(self, name: str, label: str) -> dict[str, float]:
        """Return the sum of this name's samples for each value of a label."""
        values = {sample.labels[label] for sample in self._samples if sample.name == name}
        return {value: self(name, **{label: value}) for value in values}

    def negative(self) -> list[str]:
        """Return the names of the samples below zero."""
        return [sample.name for sample in self._samples if sample.value < 0]


def scrape_until(server: RunningServer, true: Callable[[Scrape], bool]) -> Scrape:
    """Scrape until `true` accepts a scrape, and return the scrape. Fails after a minute."""
    deadline = time.monotonic() + PATIENCE_S
    while not true(scrape := Scrape(server)):
        assert time.monotonic() < deadline, scrape.text
        time.sleep(0.05)
    return scrape

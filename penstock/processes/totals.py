"""Adds up the metrics of several server processes.

In: the metric families of each process that runs, and the last ones of each that has ended. Out:
the families of all together. Counters and histograms of ended processes still count, so that no
counter goes back when a process is replaced. Not known here: how the families get here.
"""

import collections
from collections.abc import Iterable, Iterator, Mapping

from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from penstock.observe.metrics import METRICS, RESTARTS, Gauge
from penstock.processes.messages import Family

LABEL = "process"
"""The label with a process's number, for what cannot be added up."""

_Labels = tuple[tuple[str, str], ...]
_Values = dict[tuple[str, _Labels], float]
_RULES = {metric.name: metric.over_processes for metric in METRICS if isinstance(metric, Gauge)}
# What the system counts for each process (memory, processor time, files).
_OF_THE_SYSTEM = "process_"


class Totals:
    """The counts of the processes that have ended."""

    def __init__(self) -> None:
        self._counts: collections.defaultdict[str, _Values] = collections.defaultdict(dict)

    def retire(self, families: Iterable[Family]) -> None:
        """Keep the counters and histograms of a process that has ended unexpectedly."""
        self._keep(families)
        restarts = self._counts[RESTARTS.removesuffix("_total")]
        restarts[RESTARTS, ()] = restarts.get((RESTARTS, ()), 0.0) + 1

    def _keep(self, families: Iterable[Family]) -> None:
        for family in families:
            if _rule_of(family) == "sum" and family.kind != "gauge":
                _add(self._counts[family.name], family, ())

    def with_live(self, live: Mapping[int, Iterable[Family]]) -> list[Family]:
        """Return the families of all processes; `live` has those that run, by their numbers."""
        found: dict[str, Family] = {}
        values: dict[str, _Values] = {}
        for number, families in live.items():
            for family in families:
                if family.name not in found:
                    found[family.name] = family
                    values[family.name] = dict(self._counts.get(family.name, {}))
                rule = _rule_of(family)
                if rule == "max":
                    _raise(values[family.name], family)
                else:
                    own = ((LABEL, str(number)),) if rule == "each" else ()
                    _add(values[family.name], family, own)
        return [
            Family(family.name, family.kind, family.help, list(_samples(values[family.name])))
            for family in found.values()
        ]


class Collected(Collector):
    """Families that were collected before, for prometheus-client's formats."""

    def __init__(self, families: Iterable[Family]) -> None:
        self._families = families

    def collect(self) -> Iterator[Metric]:
        """Yield the families."""
        for family in self._families:
            metric = Metric(family.name, family.help, family.kind)
            for name, labels, value in family.samples:
                metric.add_sample(name, labels, value)
            yield metric


def families_of(metrics: Iterable[Metric]) -> list[Family]:
    """Return what prometheus-client has collected, as it is sent to another process."""
    return [
        Family(
            metric.name,
            metric.type,
            metric.documentation,
            # A gauge may be a truth value, which the other end would not take for a number.
            [(sample.name, sample.labels, float(sample.value)) for sample in metric.samples],
        )
        for metric in metrics
    ]


def _rule_of(family: Family) -> str:
    if family.name.startswith(_OF_THE_SYSTEM):
        return "each"
    return _RULES.get(family.name, "sum")


def _keys_of(family: Family, more: _Labels) -> Iterator[tuple[tuple[str, _Labels], float]]:
    for name, labels, value in family.samples:
        yield (name, (*labels.items(), *more)), value


def _add(values: _Values, family: Family, more: _Labels) -> None:
    for key, value in _keys_of(family, more):
        values[key] = values.get(key, 0.0) + value


def _raise(values: _Values, family: Family) -> None:
    for key, value in _keys_of(family, ()):
        values[key] = max(value, values.get(key, value))


def _samples(values: _Values) -> Iterator[tuple[str, dict[str, str], float]]:
    for (name, labels), value in values.items():
        yield name, dict(labels), value

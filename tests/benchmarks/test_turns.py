"""What becomes of the turns of `benchmarks.peers`: medians, ratios and the noise."""

import os
import sys

import pytest

from benchmarks import noise
from benchmarks.noise import Noise
from benchmarks.peers import ratios
from benchmarks.peers.ratios import streams
from benchmarks.peers.servers import COMPLETIONS, VLLM_RS
from benchmarks.peers.turns import Turns

LOAD = streams(256)
TITLE = f"tokens/s, {LOAD} ÷ vllm-rs"


def turns_of(*pairs: tuple[float, float]) -> Turns:
    """Return turns in which Penstock and vllm-rs made these numbers of tokens per second."""
    turns = Turns(Noise({}))
    for ours, theirs in pairs:
        turns.add(LOAD, COMPLETIONS, {"tokens_per_second": ours})
        turns.add(LOAD, VLLM_RS, {"tokens_per_second": theirs})
    return turns


def test_figures_are_medians_of_the_turns() -> None:
    found = turns_of((10, 5), (30, 5), (20, 5)).medians()
    assert found[LOAD][COMPLETIONS] == {"tokens_per_second": 20}


def test_a_ratio_is_the_median_of_the_ratios_within_each_repeat() -> None:
    judged = ratios.judge(turns_of((10, 10), (40, 10), (30, 15)).repeats())
    assert judged == {
        TITLE: {"median": 2.0, "min": 1.0, "max": 4.0, "goal": "at least 1.8", "met": True}
    }
    assert f"| {TITLE} | 2.00 | 1.00 to 4.00 | at least 1.8 | met |" in ratios.table(judged)


def test_a_failed_turn_shifts_no_later_turn_into_another_repeat() -> None:
    turns = turns_of((10, 10))
    turns.add(LOAD, COMPLETIONS, {"tokens_per_second": 99})
    turns.add_failure(LOAD, VLLM_RS, ConnectionError("cut"))
    turns.add(LOAD, COMPLETIONS, {"tokens_per_second": 40})
    turns.add(LOAD, VLLM_RS, {"tokens_per_second": 10})
    judged = ratios.judge(turns.repeats())
    assert (judged[TITLE]["min"], judged[TITLE]["max"]) == (1.0, 4.0)
    assert turns.failures == [f"{LOAD}: {VLLM_RS} failed: ConnectionError('cut')"]


def test_what_was_not_measured_is_said() -> None:
    assert ratios.table({}).count("not measured") == len(ratios.goals())


@pytest.mark.skipif(sys.platform != "linux", reason="needs sched_setaffinity")
def test_the_noise_of_each_core_is_reported() -> None:
    cores = os.sched_getaffinity(0)
    measured = Noise({f"core {core}": core for core in cores})
    measured.sample()
    measured.sample()
    assert os.sched_getaffinity(0) == cores
    report = measured.report()
    assert report["samples"] == 2
    assert len(report["work"]) == 2 * len(cores)
    for each in report["work"].values():
        assert 0 < each["min"] <= each["median"] <= each["max"]
    assert noise.table(report).count("\n") == 3 + 2 * len(cores)


def test_a_spread_is_the_slowest_over_the_fastest() -> None:
    assert noise.spread([2, 8, 3]) == {"min": 2, "median": 3, "max": 8, "spread": 4}

"""What each of several processes gets, and how many fit."""

import os
from pathlib import Path
from typing import Any

import msgspec
import pytest

from penstock.errors import StartError
from penstock.processes import division
from penstock.processes.division import divide, visible_gpus
from penstock.processes.member import settings_from, settings_to
from penstock.processes.messages import Start, framed
from penstock.settings import load_settings

GIB = 1024**3


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine with four cores, each with two threads (0 and 4, 1 and 5...), and no GPU."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(
        division, "_topology", lambda core, name: core % 4 if name == "core_id" else 0
    )
    monkeypatch.setattr(division, "DEVICES", tmp_path)
    monkeypatch.setattr(division, "available_bytes", lambda: 16 * GIB)
    for variable in division.GPU_VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    return tmp_path


def shares(engine: str = "mock", **flags: Any) -> list[division.Share]:
    return divide(load_settings(engine=engine, **flags))


@pytest.mark.parametrize("processes", [2, 3, 4, 8])
def test_every_core_belongs_to_one_process(processes: int) -> None:
    cores = [each.cores for each in shares(processes=processes)]
    assert sorted(core for group in cores for core in group) == list(range(8))
    assert max(map(len, cores)) - min(map(len, cores)) <= 1


def test_the_threads_of_a_core_stay_together() -> None:
    assert [each.cores for each in shares(processes=4)] == [(0, 4), (1, 5), (2, 6), (3, 7)]


def test_more_processes_than_cores_are_refused() -> None:
    with pytest.raises(StartError) as refused:
        shares(processes=9)
    assert "8 processor cores" in str(refused.value)
    assert refused.value.hint == "Use --processes 8."


def test_limits_of_the_whole_server_are_divided_and_limits_of_an_engine_are_not() -> None:
    own = shares(
        processes=3, max_connections=100, max_queue=10, slots=5, retain_bytes=900, memory_limit="3G"
    )[0].settings
    assert (own.max_connections, own.max_queue, own.slots) == (34, 4, 5)
    assert (own.retain_bytes, own.memory_limit_bytes) == (300, GIB)


def test_the_default_memory_limit_is_divided_too() -> None:
    assert shares(processes=2)[0].settings.memory_limit_bytes == 2 * GIB


def test_too_little_memory_is_refused_with_the_number_that_fits() -> None:
    with pytest.raises(StartError) as refused:
        shares(processes=4, memory_limit="800M")
    assert "800M" in str(refused.value)
    assert refused.value.hint == "Use --processes 3."


def test_no_queue_stays_no_queue() -> None:
    assert shares(processes=2, max_queue=0)[0].settings.max_queue == 0


@pytest.mark.parametrize(
    ("given", "expected"),
    [("0,1,2,3", ["0", "1", "2", "3"]), ("GPU-a, MIG-b", ["GPU-a", "MIG-b"]), ("", []), ("-1", [])],
)
def test_a_variable_names_the_gpus(
    monkeypatch: pytest.MonkeyPatch, given: str, expected: list[str]
) -> None:
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", given)
    assert visible_gpus() == ("HIP_VISIBLE_DEVICES", expected)


def test_without_a_variable_the_device_files_count(machine: Path) -> None:
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"):
        (machine / name).touch()
    assert visible_gpus() == ("CUDA_VISIBLE_DEVICES", ["0", "1"])


def test_each_engine_that_needs_gpus_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    divided = shares("vllm", processes=2, engine_arg=["tensor_parallel_size=2"])
    assert [each.environment for each in divided] == [
        {"CUDA_VISIBLE_DEVICES": "4,5"},
        {"CUDA_VISIBLE_DEVICES": "6,7"},
    ]
    assert not any(each.cores for each in divided)


def test_more_engines_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(StartError) as refused:
        shares("vllm", processes=2, engine_arg=["tensor_parallel_size=2"])
    assert "3 GPUs" in str(refused.value)
    assert refused.value.hint == "Use one process: leave out --processes."


def test_a_number_of_gpus_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2")
    with pytest.raises(StartError, match="tensor_parallel_size"):
        shares("vllm", processes=2, engine_arg=["tensor_parallel_size=all"])


def test_an_engine_that_can_do_without_gpus_has_its_own_if_there_are_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    divided = shares("llamacpp", processes=2)
    assert [each.environment for each in divided] == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    assert all(each.cores for each in divided)
    assert [each.environment for each in shares("llamacpp", processes=3)] == [{}, {}, {}]


def test_settings_reach_a_process_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENSTOCK_HEARTBEAT", "3")
    settings = load_settings(engine="mock", processes=2, api_key=["secret"], model_name="a,b")
    settings = settings.model_copy(update={"engine_tables": {"mock": {"length": 3}}})
    sent = framed(
        Start(settings_to(settings), 1, (), accepts_at_once=True, has_private_log=True, loads="")
    )[4:]
    monkeypatch.setenv("PENSTOCK_HEARTBEAT", "7")
    received = settings_from(msgspec.msgpack.decode(sent, type=Start).settings)
    assert received == settings
    assert received.engine_params == {"length": 3}

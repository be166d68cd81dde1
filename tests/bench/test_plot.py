"""Plots of a run."""

import asyncio
from pathlib import Path

import msgspec
import pytest

from penstock.bench import plot
from penstock.bench.load import Run
from penstock.bench.plan import Load
from penstock.bench.run import Result, bench
from tests.bench.test_servers import GOOD, OPTIONS, cut, models
from tests.support.scripted_server import Script, scripted_server


def measured(*scripts: Script) -> tuple[Result, Run]:
    load = Load(concurrency=1, num_requests=len(scripts))
    with scripted_server(models, *scripts) as server:
        options = msgspec.structs.replace(OPTIONS, url=server.url, load=load, model="<m> & n")
        return asyncio.run(bench(options, lambda doing, run: None))


@pytest.mark.parametrize("scripts", [(GOOD, cut), (cut,)])
@pytest.mark.parametrize(
    ("name", "beginning"),
    [("a.png", b"\x89PNG"), ("a.svg", b"<?xml"), ("a.html", b"<!doctype html>")],
)
def test_a_run_is_drawn_in_the_form_that_was_asked_for(
    name: str, beginning: bytes, scripts: tuple[Script, ...], tmp_path: Path
) -> None:
    result, run = measured(*scripts)
    figure = plot.draw(result, run.answers, run.began)
    plot.save(figure, tmp_path / name, "A <title>", plot.page_body(result))
    written = (tmp_path / name).read_bytes()
    assert written.startswith(beginning)
    if name == "a.html":
        assert b"A &lt;title>" in written or b"A &lt;title&gt;" in written
        assert b"<svg" in written
        for each in (b"<script", b"src=", b"@import", b"url(http"):
            assert each not in written


def test_without_matplotlib_it_is_said_before_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"penstock-server\[plot\]"):
        plot.check(Path("a.png"))

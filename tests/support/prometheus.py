"""A real Prometheus process that scrapes a real server."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx

from tests.support.ports import free_port

DEPLOY = Path(__file__).parents[2] / "deploy"
PATIENCE_S = 60.0
STOP_TIMEOUT_S = 60


class Prometheus:
    """The HTTP API of a running Prometheus."""

    def __init__(self, http: httpx.Client) -> None:
        self._http = http

    def get(self, path: str, **params: str) -> Any:
        """Return the data of an API call. Fails unless the status is 200."""
        answer = self._http.get(f"/api/v1/{path}", params=params)
        assert answer.status_code == 200, f"{params}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return the labels and the value of each series."""
        result = self.get("query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in result]

    def answer(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Return what `query` does, once that is something.

        A scrape that took more than its second, on a busy machine, leaves nothing until the next.
        """
        found: list[tuple[dict[str, str], float]] = []

        def has_found() -> bool:
            found[:] = self.query(expression)
            return bool(found)

        self.wait_for(expression, has_found)
        return found

    def wait_for(self, what: str, true: Callable[[], bool]) -> None:
        """Wait until `true` returns True. Fails with `what` after 60 seconds."""
        deadline = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < deadline, what
            time.sleep(0.1)

    def is_ready(self) -> bool:
        """Return whether Prometheus is ready to answer queries."""
        with contextlib.suppress(httpx.TransportError):
            return self._http.get("/-/ready").status_code == 200
        return False


@contextlib.contextmanager
def scraping(program: str, port: int, key: str, folder: Path) -> Iterator[Prometheus]:
    """Run `program` with the configuration in deploy/, scraping the server at `port` with a key."""
    config = (DEPLOY / "prometheus" / "prometheus.yml").read_text(encoding="utf-8")
    assert config.count("127.0.0.1:8000") == 1
    assert config.count("scrape_interval: 5s") == 1
    config = config.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    config = config.replace("scrape_interval: 5s", "scrape_interval: 1s")
    config += f"    authorization: {{credentials: {key}}}\n"
    (folder / "prometheus.yml").write_text(config, encoding="utf-8")
    shutil.copy(DEPLOY / "prometheus" / "alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
    with (folder / "prometheus.log").open("w") as output:
        process = subprocess.Popen(
            [
                program,
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={address}",
            ],
            stderr=output,
            stdout=output,
        )
    try:
        with httpx.Client(base_url=f"http://{address}", timeout=PATIENCE_S) as http:
            prometheus = Prometheus(http)
            prometheus.wait_for("Prometheus is ready", prometheus.is_ready)
            yield prometheus
    finally:
        process.terminate()
        process.wait(STOP_TIMEOUT_S)

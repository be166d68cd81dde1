"""Sends bad and generated inputs, and counts wrong answers."""

import asyncio
import re
import subprocess
import sys
from pathlib import Path

from benchmarks.report import Figures
from tests.support.scraped import Scrape
from tests.support.servers import serve


async def table() -> Figures:
    """Run each row of the table of bad inputs (tests/api/test_bad_input.py)."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["tests/api/test_bad_input.py", "-k", "bad_input_gets", "-n", "2"]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True)
    counts = {
        word: int(number) for number, word in re.findall(r"(\d+) (passed|failed)", done.stdout)
    }
    return {"rows": sum(counts.values()), "wrong answers": counts.get("failed", 0)}


async def fuzz(examples: int) -> Figures:
    """Run schemathesis on the OpenAPI schema, and count the requests and their statuses."""
    with serve(engine="mock", mock_interval=0, engine_arg=["length=5"]) as server:
        done = await asyncio.to_thread(
            subprocess.run,
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                f"{server.url}/openapi.json",
                *("--mode", "all", "--phases", "coverage,fuzzing"),
                *("--max-examples", str(examples), "--checks", "not_a_server_error"),
                *("--continue-on-failure", "--no-color"),
            ],
            capture_output=True,
            text=True,
        )
        statuses = Scrape(server).by("penstock_http_requests_total", "status")
    cases = re.search(r"(\d+) generated", done.stdout)
    return {
        "requests": int(cases[1]) if cases else 0,
        "answers by status": {status: int(statuses[status]) for status in sorted(statuses)},
        "5xx": int(sum(number for status, number in statuses.items() if status.startswith("5"))),
    }

"""Schemathesis makes valid and invalid requests from our OpenAPI page: none may find a bug."""

import re
import subprocess
import sys
from pathlib import Path

from tests.support.scraped import Scrape
from tests.support.servers import serve

EXAMPLES = 25


def test_no_request_generated_from_the_schema_gets_an_internal_error() -> None:
    with serve(engine="mock", mock_interval=0, engine_arg=["length=5"]) as server:
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run"),
                f"{server.url}/openapi.json",
                *("--mode", "all", "--phases", "coverage,fuzzing", "--seed", "1"),
                *("--max-examples", str(EXAMPLES), "--checks", "not_a_server_error"),
                *("--continue-on-failure", "--no-color"),
            ],
            capture_output=True,
            text=True,
        )
        bad = [line for line in server.output if " status=5" in line or "ERROR" in line]
        assert done.returncode == 0, "\n".join([done.stdout[-5000:], *bad])
        cases = re.search(r"(\d+) generated, (\d+) passed", done.stdout)
        assert cases is not None
        assert int(cases[1]) == int(cases[2]) > 10 * EXAMPLES
        statuses = Scrape(server).by("penstock_http_requests_total", "status")
        assert statuses["200"] > 0
        assert not [status for status in statuses if status.startswith("5")]
        assert "Traceback" not in "".join(server.output)

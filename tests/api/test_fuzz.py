"""Schemathesis makes valid and invalid requests from our description: none may find a bug.

It also compares every response with the description.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.raw import ask, request
from tests.support.scraped import Scrape
from tests.support.servers import serve

EXAMPLES = 25
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "unsupported_method",
    "allow_header_conformance",
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("strict", [True, False])
def test_no_request_generated_from_the_schema_gets_an_internal_error(
    tmp_path: Path, strict: bool
) -> None:
    """Without `--strict`, a value that violates the schema but asks for nothing is accepted."""
    checks = [check for check in CHECKS if strict or check != "negative_data_rejection"]
    arguments = ["--strict"] if strict else []
    with serve(*arguments, engine="mock", mock_interval=0, engine_arg=["length=5"]) as server:
        page = ask(server.port, request("GET", "/openapi.json")).json()
        del page["paths"]["/live/events"]  # it never ends (tests/server/test_live.py)
        # Schemathesis takes the schema of a stream, which is a string, for that of one event.
        # test_openapi.py checks the events.
        for methods in page["paths"].values():
            for operation in methods.values():
                for response in operation["responses"].values():
                    for stream in ("text/event-stream", "application/x-ndjson"):
                        response.get("content", {}).get(stream, {}).pop("schema", None)
        description = tmp_path / "openapi.json"
        description.write_text(json.dumps(page))
        done = subprocess.run(
            [
                *(str(Path(sys.executable).with_name("schemathesis")), "run", str(description)),
                *("--url", server.url, "--mode", "all", "--phases", "coverage,fuzzing"),
                *("--seed", "1", "--max-examples", str(EXAMPLES), "--checks", ",".join(checks)),
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

"""docs/clients.md: each client has a version, a set-up, a result, and a test or a day.

`tests/test_behavior.py` checks that the named tests exist.
"""

import json
import re

from penstock.cli.launch import MIN_CONTEXT
from penstock.cli.programs import PROGRAMS
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
TABLE = PAGE.partition("## The table")[2].partition("\n## ")[0]
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TABLE.partition("|---|")[2].splitlines()[1:]
    if line.startswith("|")
]
PROOF = re.compile(r"`tests/[\w/]+\.py(?:::test_\w+)?`|`make agents` on 20\d\d-\d\d-\d\d")
FOREIGN = ROOT / "tests" / "foreign"
IN_CI = "tests/foreign/test_sdks.py"


def test_each_client_has_a_version_a_set_up_a_result_and_a_proof() -> None:
    assert len(ROWS) > 10
    for row in ROWS:
        assert len(row) == 5, row
        assert all(row), row
        assert PROOF.search(row[-1]), row


def test_each_program_that_can_be_launched_is_a_client() -> None:
    launched = {found[1] for row in ROWS if (found := re.match(r"`penstock launch (\w+)`", row[2]))}
    assert launched == set(PROGRAMS)
    assert f"{MIN_CONTEXT:,} tokens" in PAGE


def pinned() -> dict[str, str]:
    """Return the version of each package that the programs of `tests/foreign` use."""
    versions: dict[str, str] = json.loads((FOREIGN / "npm" / "package.json").read_text())[
        "dependencies"
    ]
    for script in (FOREIGN / "sdks").glob("*_sdk.py"):
        listed = re.search(r"^# dependencies = (\[.*\])$", script.read_text(), re.MULTILINE)
        assert listed is not None, script
        for each in json.loads(listed[1]):
            name, _, version = each.partition("==")
            versions[re.sub(r"\[.*\]", "", name)] = version
    return versions


def test_an_sdk_that_runs_in_ci_has_the_version_that_runs_there() -> None:
    versions = pinned()
    shown = {
        named[1]: row[1]
        for row in ROWS
        if IN_CI in row[-1] and (named := re.search(r"`([\w@/-]+)`", row[0]))
    }
    assert len(shown) == len(list((FOREIGN / "sdks").glob("*_sdk.py"))) + 3
    assert shown == {name: versions[name] for name in shown}

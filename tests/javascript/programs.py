"""Programs that read an answer with the JavaScript client, and what they tell of it.

In: what is asked (`reader.js` has its form). Out: the things that happened, in order.
"""

import json
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.docs.pages import ROOT
from tests.support.programs import find_program

CLIENT = ROOT / "clients" / "javascript"
HERE = Path(__file__).parent
TIMEOUT_S = 60
QUICK = {"firstMs": 10, "maxMs": 50}


@dataclass
class Told:
    """Everything that a program told."""

    everything: list[tuple[str, Any]] = field(default_factory=list)

    def of(self, what: str) -> list[Any]:
        """Return the values of all that is called `what`."""
        return [value for name, value in self.everything if name == what]

    @property
    def names(self) -> list[str]:
        """Return what happened, without the deltas."""
        return [name for name, _ in self.everything if name != "delta"]

    @property
    def text(self) -> str:
        return "".join(self.of("delta"))

    @property
    def end(self) -> dict[str, Any]:
        """Return how the answer ended. Fails if it ended with an error."""
        name, about = self.everything[-1]
        assert name == "end", about
        ended: dict[str, Any] = about
        return ended

    @property
    def error(self) -> dict[str, Any]:
        """Return the error of the answer. Fails if it had none."""
        name, about = self.everything[-1]
        assert name == "error", about
        error: dict[str, Any] = about
        return error


def asked(
    url: str,
    call: str = "stream",
    given: object = "Hi",
    *,
    options: dict[str, Any] | None = None,
    stops: dict[int | str, str] | None = None,
    statuses: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Return what a program is to do."""
    return {
        "settings": {"url": url, "backoff": QUICK, **settings},
        "call": call,
        "input": given,
        "options": options or {},
        "stops": stops or {},
        "statuses": statuses,
    }


def node() -> str:
    """Return the path of Node. Without it the test skips; with PENSTOCK_REQUIRE_NPM=1 it fails."""
    return find_program("node", "nodejs npm", "PENSTOCK_REQUIRE_NPM")


@contextmanager
def running(
    what: dict[str, Any], program: Sequence[str] | None = None
) -> Iterator[Iterator[tuple[str, Any]]]:
    """Run a program, and yield what it tells while it runs."""
    main = [str(HERE / "main.js"), (CLIENT / "src" / "index.js").as_uri(), json.dumps(what)]
    with subprocess.Popen(
        [*(program or [node()]), *main], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield (tuple(json.loads(line)) for line in process.stdout)
            _, errors = process.communicate(timeout=TIMEOUT_S)
        finally:
            process.kill()
    assert (process.returncode, errors) == (0, "")


def read(url: str, *arguments: Any, **options: Any) -> Told:
    """Read an answer in Node to its end. `asked` has the arguments."""
    with running(asked(url, *arguments, **options)) as told:
        return Told(list(told))

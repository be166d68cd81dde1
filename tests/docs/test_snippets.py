"""Every command and snippet of README, the tutorial and the guides, run or checked.

The rules for a page:

1. Fence every block and name its language: bash, console, python, js, toml, json or text.
2. Write the server as http://127.0.0.1:8000. The test puts its own server's address there: the
   built-in model, or the last server that the page itself has started and kept.
3. The blocks of a page share one working directory, from top to bottom. It has the clone's
   `deploy/`, `benchmarks/` and `tests/`, and `model.gguf`, `cert.pem`, `key.pem`, `authority.pem`.
4. `STREAM_ID` is the last `X-Stream-ID` that an earlier block printed, `KEY` the last key of
   `penstock key`. `--duration` and `--requests` of `penstock bench` are made small.

| language | the test                                                                             |
|----------|--------------------------------------------------------------------------------------|
| bash     | runs the block with `set -e`: every command must end with 0                          |
| console  | runs the lines after `$ ` and compares the output; `...` stands for anything         |
| python   | runs the block in a fresh process                                                    |
| js       | runs it in Chromium if it uses `document` or `EventSource`, else in Node             |
| toml     | loads it as a penstock.toml                                                          |
| json     | parses it                                                                            |
| text     | needs a marker                                                                       |

A marker is an HTML comment above the block:

- `<!-- test: skip reason=needs a GPU -->`: the block is not run. pytest's summary has the reason.
- `<!-- test: starts-server -->`: each `penstock serve` and `make serve` of a bash block is started
  on a free port, gets ready, and is stopped. With `keep` its last server serves the page's rest.
- `<!-- test: flags reason=needs a GPU -->`: a bash block whose `penstock serve` is parsed, not run.
- `<!-- test: output -->`: a text block is the standard output of the block that ran last.
- `<!-- test: continues -->`: a python block goes on with the names of the last python block.
- `<!-- test: keys -->`: a toml block is a file of keys.
- `<!-- test: file NAME -->`: the block is written to NAME in the page's directory.
"""

from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from penstock.cli.main import app
from tests.docs.pages import ALL, ROOT, RUN, Block, blocks_of, commands_of
from tests.docs.running import PageRun

BLOCKS = {page: blocks_of(page) for page in RUN}
SKIPPED = [block for blocks in BLOCKS.values() for block in blocks if not block.runs]
FLAGS_ONLY = [block for blocks in BLOCKS.values() for block in blocks if "flags" in block.actions]
COMMANDS = get_command(app).commands  # type: ignore[attr-defined] # a group


def named(command: str) -> Any:
    """Return a command by its name: "serve", "key add", or "key" for `penstock key NAME`."""
    name, _, subcommand = command.partition(" ")
    found = COMMANDS[name]
    return found.commands[subcommand or "print"] if hasattr(found, "commands") else found


@pytest.mark.timeout(300)
@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_of_the_page_works(page: Path, run: PageRun) -> None:
    wrong = run.all(BLOCKS[page])
    assert not wrong, "\n\n".join(wrong)


@pytest.mark.parametrize("block", [*SKIPPED, *FLAGS_ONLY], ids=lambda block: block.place)
def test_a_block_that_is_not_run_says_why(block: Block) -> None:
    pytest.skip(block.actions.get("skip") or f"only its flags: {block.actions['flags']}")


@pytest.mark.parametrize("page", ALL, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_flag_of_a_command_exists(page: Path) -> None:
    for line, command, flags in commands_of(page):
        known = {name for each in named(command).params for name in each.opts}
        unknown = set(flags) - known - {"--help"}
        assert not unknown, f"{page.name}:{line}: penstock {command} has no {unknown}"

"""Run Claude Code, Codex and opencode on a task of 20 turns, then replay their turns on llama.cpp.

    python -m tests.agents
    python -m tests.agents claude codex --turns 5

The agents are npm's packages in pinned versions. They run with `penstock launch` and an engine that
answers from a script: each turn calls the agent's own shell, and the next one checks the result.
Then their requests go to llama.cpp with a random model: each agent's alone, and all agents' in
turns. The exit code is 1 if a task failed, or if less than 90% of a prompt came from the cache.
"""

import argparse
import sys
import tempfile
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from tests.agents.programs import AGENTS, installed
from tests.agents.replay import Turn, replay, too_little_cached
from tests.agents.run import MODEL, Run, run_task
from tests.support.random_model import random_model
from tests.support.servers import serve
from tests.support.smollm2 import find
from tests.support.templates import TOOLS

CONTEXT = 32_768
NUM_TURNS = 20


def main() -> int:
    """Run the agents and the replays; return the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("agents", nargs="*", help=f"{', '.join(AGENTS)}; all by default")
    parser.add_argument("--turns", type=int, default=NUM_TURNS, help="turns of the task (20)")
    given = parser.parse_args()
    if unknown := set(given.agents) - set(AGENTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; choose from {', '.join(AGENTS)}")
    commands = installed()
    runs = []
    for name in given.agents or AGENTS:
        runs.append(run_task(AGENTS[name], commands, given.turns))
        _print_run(runs[-1])
    good = [run for run in runs if not run.faults]
    is_cached = _replay(good)
    return 0 if is_cached and len(good) == len(runs) else 1


def _print_run(run: Run) -> None:
    print(
        f"{run.agent.name} {run.agent.version}: {len(run.turns)} turns,"
        f" {len(run.requests)} requests, {len(run.errors)} errors,"
        f" other servers asked: {', '.join(sorted(set(run.others))) or 'none'}, {run.seconds:.0f} s"
    )
    print(f"  fields left out: {', '.join(run.ignored) or 'none'}")
    for fault in run.faults:
        print(f"  FAULT: {fault}")
    sys.stdout.flush()


def _replay(runs: list[Run]) -> bool:
    """Replay the turns and print how much was cached; return True if it was enough."""
    if not runs:
        return False
    with tempfile.TemporaryDirectory(prefix="penstock-agents-") as folder:
        path = Path(folder, "random.gguf")
        model = random_model(path, find(), context=CONTEXT, template=TOOLS)
        alone = [_sent(run) for run in runs]
        groups = [(1, turns) for turns in alone]
        if len(runs) > 1:
            mixed = chain.from_iterable(zip_longest(*alone))
            groups.append((len(runs), [turn for turn in mixed if turn is not None]))
        enough = [_replay_group(model, slots, turns) for slots, turns in groups]
        return all(enough)


def _sent(run: Run) -> list[tuple[str, str, dict[str, Any]]]:
    return [(run.agent.name, each.path, each.body) for each in run.turns]


def _replay_group(model: Path, slots: int, turns: list[tuple[str, str, dict[str, Any]]]) -> bool:
    with serve(model=model, model_name=MODEL, context=CONTEXT, slots=slots) as server:
        answered = replay(server, turns)
    for name in dict.fromkeys(turn.conversation for turn in answered):
        _print_cached(slots, [turn for turn in answered if turn.conversation == name])
    faults = too_little_cached(answered)
    for fault in faults:
        print(f"  FAULT: {fault}")
    sys.stdout.flush()
    return not faults


def _print_cached(slots: int, turns: list[Turn]) -> None:
    least = min((turn.cached for turn in turns[1:]), default=0.0)
    how = "alone" if slots == 1 else f"in turns with others, {slots} slots"
    print(
        f"{turns[0].conversation}, {how}: {len(turns)} turns of {turns[0].prompt_tokens} to"
        f" {turns[-1].prompt_tokens} tokens; at least {least:.1%} from the cache"
    )


if __name__ == "__main__":
    sys.exit(main())

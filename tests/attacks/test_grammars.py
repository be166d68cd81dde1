"""Schemas, grammars and tools that are small to send and endless to compile."""

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil
import pytest

from tests.attacks.telling import story_told
from tests.support.openai_wire import CHAT
from tests.support.raw import Connection, Response, ask, post
from tests.support.servers import RunningServer, serve
from tests.support.templates import CALL_ID, TOOLS
from tests.support.waiting import eventually

NUM_BOMBS = 6
MOST_GROWTH = 900 * 2**20
"""Four compiles at their limit of 192 MiB, and what is measured twice or freed late."""
QUESTION = [{"role": "user", "content": "Hello"}]


def string_in_all(patterns: list[str]) -> dict[str, Any]:
    return {"type": "string", "allOf": [{"pattern": each} for each in patterns]}


def doubled(levels: int) -> dict[str, Any]:
    """Return definitions of which each uses the next twice."""
    names = [f"d{level}" for level in range(levels)]
    defs: dict[str, Any] = {
        name: {"properties": {key: {"$ref": f"#/$defs/{after}"} for key in "ab"}, "allOf": [{}]}
        for name, after in itertools.pairwise(names)
    }
    return {"$ref": "#/$defs/d0", "$defs": {**defs, names[-1]: {"anyOf": [{"type": "string"}] * 9}}}


def nested_choices(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema, {"type": "object", "properties": {"a": schema, "b": schema}}]}
    return schema


def multiple(number: int) -> dict[str, Any]:
    return {"type": "integer", "multipleOf": number}


def schema(value: dict[str, Any]) -> dict[str, Any]:
    return {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}
    }


def tool(parameter: dict[str, Any]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"a": parameter}, "required": ["a"]}
    return {"tools": [{"type": "function", "function": {"name": "f", "parameters": parameters}}]}


def grammar(**constraint: Any) -> dict[str, Any]:
    return {"structured_outputs": constraint}


PATTERNS = [f"^(.*ab{letter}.*){{20}}$" for letter in "abcdefghijklmnopqrstuvwxyzA"]
ENDLESS = {
    "a large multiple": schema(multiple(2_000_003)),
    "a huge multiple": schema(multiple(10_000_019)),
    "many patterns at once": schema(string_in_all(PATTERNS)),
    "a tool's huge multiple": tool(multiple(10_000_019)),
    "a required tool's patterns": {**tool(string_in_all(PATTERNS)), "tool_choice": "required"},
}
"""llama.cpp would compile each of these for many seconds."""
LARGE = {
    "a multiple with many divisors": schema(multiple(86_400_000)),
    "choices in choices": schema(nested_choices(9)),
    "definitions that double": schema(doubled(40)),
    "a long enum": schema({"enum": [f"value {number}" for number in range(4000)]}),
    "long lists": schema({"type": "array", "minItems": 10**5, "items": {"type": "string"}}),
    "long texts": schema({"type": "string", "minLength": 10**6}),
    "repeated repetition": grammar(regex="((a{1,1000}b?){1,1000}c?){1,1000}"),
    "a late choice": grammar(regex="(.*a.{20}){3}"),
    "many long choices": grammar(choice=[f"{number} {'a' * 40}" for number in range(1024)]),
    "GBNF that repeats": grammar(grammar='root ::= ("a"{0,1000} "b"?){0,1000}'),
    "GBNF with many ways": grammar(grammar='root ::= a\na ::= a a | "x" | a a a | ""'),
    "Lark that excludes": grammar(grammar="%llguidance {}\nstart: A\nA: ~/.*(a.{15}|b.{15}).*/"),
}
"""Each of these is answered or refused, and stops no other stream."""
GOOD = schema({"type": "object", "properties": {"a": {"enum": ["yes", "no"]}}, "required": ["a"]})


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with serve(slots=2 + NUM_BOMBS) as running:
        yield running


def chat(fields: dict[str, Any]) -> bytes:
    body = {"messages": QUESTION, "max_tokens": 24, "temperature": 0, **fields}
    return post(json.dumps(body).encode(), path=CHAT)


def is_refused_for_good(answer: Response) -> bool:
    """Return True for a refusal that tells the client not to send this again."""
    error = answer.json()["error"]
    assert "multipleOf" not in error["message"], "the schema is echoed"
    assert "ab" not in error["message"].replace("able", ""), "a pattern is echoed"
    return answer.status == 400 and not error["retry_safe"]


def group_of(server: RunningServer) -> list[psutil.Process]:
    engine = psutil.Process(server.engine_pid())
    return [engine, *engine.children(recursive=True)]


def memory_of(server: RunningServer) -> int:
    total = 0
    for each in group_of(server):
        try:
            total += each.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total


def compiler_of(server: RunningServer) -> psutil.Process:
    (compiler,) = psutil.Process(server.engine_pid()).children()
    return compiler


def compiles_of(server: RunningServer) -> list[psutil.Process]:
    """Return the processes that compile something now: the children of the compiler's process."""
    engine = psutil.Process(server.engine_pid())
    return [each for child in engine.children() for each in child.children()]


class Watch:
    """Measures the memory of an engine's processes in a thread, while the context is open."""

    def __init__(self, server: RunningServer) -> None:
        self.before = self.peak = memory_of(server)
        self._server = server
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._measure, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _measure(self) -> None:
        while not self._is_over.wait(0.02):
            self.peak = max(self.peak, memory_of(self._server))


def good_is_answered(server: RunningServer) -> bool:
    answer = ask(server.port, chat(GOOD))
    assert answer.status == 200, answer.body
    return json.loads(answer.json()["choices"][0]["message"]["content"])["a"] in ("yes", "no")


def test_no_grammar_stops_another_stream(server: RunningServer) -> None:
    with story_told(server), Watch(server) as watch:
        for name, fields in ENDLESS.items():
            answer = ask(server.port, chat(fields))
            assert is_refused_for_good(answer), (name, answer.body)
            assert answer.json()["error"]["code"] == "schema_too_complex", name
        for name, fields in LARGE.items():
            answer = ask(server.port, chat(fields))
            assert answer.status == 200 or is_refused_for_good(answer), (name, answer.body)
        assert good_is_answered(server)
    assert watch.peak - watch.before < MOST_GROWTH
    assert eventually(lambda: not compiles_of(server))


def test_six_at_once_leave_room_for_a_good_schema(server: RunningServer) -> None:
    bombs = [chat(schema(multiple(10_000_079 + number))) for number in range(NUM_BOMBS)]
    with (
        story_told(server),
        Watch(server) as watch,
        ThreadPoolExecutor(NUM_BOMBS) as pool,
    ):
        answers = [pool.submit(ask, server.port, bomb) for bomb in bombs]
        assert eventually(lambda: len(compiles_of(server)) > 1)
        assert good_is_answered(server)
        assert all(is_refused_for_good(each.result()) for each in answers)
    assert watch.peak - watch.before < MOST_GROWTH


def test_what_was_compiled_once_is_not_compiled_again(server: RunningServer) -> None:
    bomb = chat(schema(multiple(10_000_103)))
    assert is_refused_for_good(ask(server.port, bomb))
    assert good_is_answered(server)
    compiler = compiler_of(server)
    compiler.suspend()
    try:
        assert is_refused_for_good(ask(server.port, bomb))
        assert good_is_answered(server)
    finally:
        compiler.resume()


def test_a_compile_whose_process_is_killed_runs_once_more(server: RunningServer) -> None:
    with story_told(server), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(ask, server.port, chat(schema(multiple(10_000_121))))
        kill(lambda: compiles_of(server))
        assert is_refused_for_good(answer.result())
        answer = pool.submit(ask, server.port, chat(schema(multiple(10_000_139))))
        first = kill(lambda: compiles_of(server))
        kill(lambda: [each for each in compiles_of(server) if each != first])
        refused = answer.result()
        assert refused.status == 500
        assert refused.json()["error"]["retry_safe"]
        assert good_is_answered(server)


def test_the_compiler_s_process_comes_back(server: RunningServer) -> None:
    assert good_is_answered(server)
    killed = compiler_of(server)
    killed.kill()
    other = schema({"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]})
    with story_told(server):
        assert ask(server.port, chat(other)).status == 200
    assert compiler_of(server) != killed


def test_a_client_that_leaves_ends_its_compile(server: RunningServer) -> None:
    with story_told(server):
        connection = Connection(server.port).send(chat(schema(multiple(10_000_141))))
        assert eventually(lambda: bool(compiles_of(server)))
        connection.reset()
        assert eventually(lambda: not compiles_of(server))
        assert good_is_answered(server)


def test_no_compile_outlives_its_engine() -> None:
    with serve() as server:
        assert good_is_answered(server)
        connection = Connection(server.port).send(chat(schema(multiple(10_000_169))))
        assert eventually(lambda: bool(compiles_of(server)))
        engine, *others = group_of(server)
        assert len(others) == 2
        engine.kill()
        assert eventually(lambda: not any(each.is_running() for each in others))
        connection.close()


def test_no_tool_in_the_template_s_own_form_stops_another_stream() -> None:
    wide: dict[str, dict[str, Any]] = {
        "optional letters": {"type": "string", "pattern": "^" + "a?" * 200 + "b$"},
        "letters to choose from": {"type": "string", "pattern": "^(" + "a|" * 150 + "b)*c$"},
        "itself": {"anyOf": [{"$ref": "#/properties/a"}, {"type": "string"}]},
    }
    forced = {"logit_bias": {str(CALL_ID): 100}, "max_tokens": 100, "temperature": 1, "seed": 3}
    with serve(slots=4, engine_arg=[f"chat_template={TOOLS}"]) as server, story_told(server):
        for name, parameter in wide.items():
            answer = ask(server.port, chat({**tool(parameter), **forced}))
            assert answer.status == 200 or is_refused_for_good(answer), (name, answer.body)


def kill(find: Callable[[], list[psutil.Process]]) -> psutil.Process:
    """Kill the first process that `find` returns, as soon as it returns any."""
    found: list[psutil.Process] = []

    def finds() -> bool:
        found.extend(find())
        return bool(found)

    assert eventually(finds)
    found[0].kill()
    return found[0]

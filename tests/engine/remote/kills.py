"""Kill llama.cpp's servers under answers: `python -m tests.engine.remote.kills`.

Three servers run the built-in model, and Penstock stands in front. Programs with OpenAI's client
read greedy answers, one after the other. Again and again, in the middle, the busiest server is
killed with -9 and then started anew. The next kill comes when every program has got on: an answer
that two servers in a row fail would be given up. Every answer must be whole, and equal to the
undisturbed one.
A server reads a begun answer in other steps than it writes one, so the last digits of its sums
differ: where two tokens are nearly tied, the answer may go on with either.
"""

import argparse
import asyncio
import contextlib
import itertools
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import httpx
import openai

from benchmarks.report import quantile
from tests.support.llama_server import LlamaServer, llama_server
from tests.support.servers import serve

LENGTH = 700
PROMPTS_PER_PROGRAM = 3
NUM_SERVERS = 3
NEAR_TIE = 0.05
"""The greatest difference of two logits that are nearly tied; weights have 11 significant bits."""
PATIENCE_S = 120.0
MAX_PIECES_BETWEEN = 100
SHORTEST_GAP_S = 0.005
# What a killed server had sent before arrives a little later.
ON_THE_WAY_S = 0.1


class Place:
    """An address at which llama.cpp's server runs, in one life after the other."""

    def __init__(self) -> None:
        self._life = contextlib.ExitStack()
        self.server: LlamaServer = self._life.enter_context(llama_server())
        self._port = int(self.server.url.rpartition(":")[2])

    def kill(self) -> None:
        """Kill the server with -9."""
        self.server.kill()

    def restart(self) -> None:
        """Start a server at the same address, and wait until it answers."""
        self._life.close()
        self.server = self._life.enter_context(llama_server(port=self._port))

    def close(self) -> None:
        """End the server."""
        self._life.close()


@dataclass
class Answer:
    """What a program has got; `gaps` has the longer waits for a piece, from and to."""

    prompt: str
    text: str = ""
    ids: list[int] = field(default_factory=list)
    length: int = 0
    gaps: list[tuple[float, float]] = field(default_factory=list)


@dataclass
class Kill:
    """When a server was killed, and how many answers it was writing."""

    at: float
    num_answers: int


@dataclass
class Result:
    """All answers and all kills; `num_parted` answers have parted at nearly tied tokens."""

    answers: list[Answer]
    kills: list[Kill]
    num_parted: int

    def pauses(self) -> list[float]:
        """Return for each kill the longest wait for a piece that any answer had, in seconds."""
        gaps = [gap for answer in self.answers for gap in answer.gaps]
        return [
            max(
                (
                    end - begin
                    for begin, end in gaps
                    if begin < kill.at + ON_THE_WAY_S and end > kill.at
                ),
                default=0.0,
            )
            for kill in self.kills
        ]


class Programs:
    """Programs that read answers until `is_over`."""

    def __init__(self, url: str) -> None:
        self.client = openai.AsyncOpenAI(
            base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=PATIENCE_S
        )
        self.answers: list[Answer] = []
        self.is_over = False
        self._awaited: dict[int, int] = {}
        """The numbers of pieces that programs, by their own numbers, are still to get."""
        self._far_enough = asyncio.Event()

    async def wait_for(self, num_pieces: Sequence[int]) -> None:
        """Wait until every program has got so many more pieces."""
        self._awaited = dict(enumerate(num_pieces))
        self._far_enough.clear()
        async with asyncio.timeout(PATIENCE_S):
            await self._far_enough.wait()

    async def run(self, program: int, prompts: Sequence[str]) -> None:
        """Read answers to one prompt after the other."""
        for prompt in itertools.cycle(prompts):
            if self.is_over:
                break
            self.answers.append(await self.read(prompt, program))

    async def read(self, prompt: str, program: int = 0) -> Answer:
        """Read one answer, as this program."""
        answer = Answer(prompt)
        last = time.monotonic()
        stream = await self.client.completions.create(
            model="rill",
            prompt=prompt,
            max_tokens=LENGTH,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )
        pieces = []
        async for each in stream:
            now = time.monotonic()
            if now - last > SHORTEST_GAP_S:
                answer.gaps.append((last, now))
            last = now
            for choice in each.choices:
                pieces.append(choice.text)
                answer.ids += (choice.model_extra or {}).get("token_ids") or ()
            answer.length = each.usage.completion_tokens if each.usage else answer.length
            self._count(program)
        answer.text = "".join(pieces)
        return answer

    def _count(self, program: int) -> None:
        if program not in self._awaited:
            return
        self._awaited[program] -= 1
        if not self._awaited[program]:
            del self._awaited[program]
            if not self._awaited:
                self._far_enough.set()


async def kill_servers(num_kills: int, num_programs: int, seed: int) -> Result:
    """Kill servers under the programs' answers, and check every answer."""
    with contextlib.ExitStack() as stack:
        places = [stack.enter_context(contextlib.closing(Place())) for _ in range(NUM_SERVERS)]
        urls = [each.server.url for each in places]
        server = await asyncio.to_thread(
            stack.enter_context, serve(upstream=urls, engine_arg="interval=1")
        )
        programs = Programs(server.url)
        prompts = [
            [f"Story {n}.{part}. Once upon a time" for part in range(PROMPTS_PER_PROGRAM)]
            for n in range(num_programs)
        ]
        undisturbed = {each: await programs.read(each) for each in itertools.chain(*prompts)}
        chance = random.Random(seed)
        kills = []
        async with asyncio.TaskGroup() as group:
            for n, each in enumerate(prompts):
                group.create_task(programs.run(n, each))
            for _ in range(num_kills):
                await programs.wait_for([chance.randint(1, MAX_PIECES_BETWEEN) for _ in prompts])
                kills.append(await kill_one(places))
            programs.is_over = True
        await programs.client.close()
        num_parted = 0
        for answer in programs.answers:
            assert answer.length == LENGTH
            if answer.text != undisturbed[answer.prompt].text:
                num_parted += 1
                await check_parting(places[0].server.url, answer, undisturbed[answer.prompt])
        return Result(programs.answers, kills, num_parted)


async def kill_one(places: list[Place]) -> Kill:
    """Kill the busiest server and start it again."""
    async with httpx.AsyncClient(timeout=PATIENCE_S) as client:
        counts = await asyncio.gather(*(num_at_work(client, each) for each in places))
    most = max(counts)
    victim = places[counts.index(most)]
    kill = Kill(time.monotonic(), most)
    victim.kill()
    await asyncio.to_thread(victim.restart)
    return kill


async def num_at_work(client: httpx.AsyncClient, place: Place) -> int:
    """Return how many answers a server writes now."""
    slots = (await client.get(f"{place.server.url}/slots")).json()
    return sum(slot["is_processing"] for slot in slots)


async def check_parting(url: str, answer: Answer, undisturbed: Answer) -> None:
    """Check that an answer left the undisturbed one only where two tokens are nearly tied.

    A llama.cpp's server at `url` says how likely they are.
    """
    ours, theirs = answer.ids, undisturbed.ids
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S) as client:
        body = {"content": answer.prompt, "add_special": True}
        prompt = (await client.post("/tokenize", json=body)).json()["tokens"]
        while ours != theirs:
            pairs = enumerate(zip(ours, theirs, strict=True))
            at = next(index for index, (left, right) in pairs if left != right)
            ask = {"temperature": 0, "ignore_eos": True, "cache_prompt": False, "n_probs": 5}
            said = await client.post(
                "/completion", json={**ask, "prompt": prompt + ours[:at], "n_predict": 1}
            )
            (step,) = said.json()["completion_probabilities"]
            logits = {each["id"]: each["logprob"] for each in step["top_logprobs"]}
            left, right = logits[ours[at]], logits[theirs[at]]
            what = f"{answer.prompt!r} parted at token {at}, with logits {left} and {right}"
            assert abs(left - right) < NEAR_TIE, what
            ask = {"temperature": 0, "ignore_eos": True, "return_tokens": True}
            room = len(ours) - at - 1
            rest = await client.post(
                "/completion", json={**ask, "prompt": prompt + ours[: at + 1], "n_predict": room}
            )
            theirs = ours[: at + 1] + rest.json()["tokens"]


def main() -> None:
    """Kill the servers and print the result."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--programs", type=int, default=8, help="how many read at once")
    parser.add_argument("--seed", type=int, default=19)
    options = parser.parse_args()
    result = asyncio.run(kill_servers(options.kills, options.programs, options.seed))
    pauses = [1000 * each for each in result.pauses()]
    hit = sum(kill.num_answers for kill in result.kills)
    equal = len(result.answers) - result.num_parted
    print(
        f"{len(result.kills)} servers were killed under {hit} answers. All"
        f" {len(result.answers)} answers are whole: {equal} are equal to the undisturbed ones, and"
        f" {result.num_parted} parted from them where two tokens are nearly tied."
    )
    print(
        f"The longest pause of each kill: p50 {quantile(pauses, 0.5):.0f} ms,"
        f" p99 {quantile(pauses, 0.99):.0f} ms"
    )


if __name__ == "__main__":
    main()

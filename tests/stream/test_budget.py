"""Tokens per minute: random requests of one owner never use more than the promise allows."""

from hypothesis import example, given
from hypothesis import strategies as st

from penstock.request import Message, Request
from penstock.stream.budget import Budget, Claim, claim_of, estimated_prompt_tokens

PER_MINUTE = 600


class Scene:
    """A budget, a clock, and requests that generate as many tokens as they were allowed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.budget = Budget(PER_MINUTE, 0.0)
        self.used: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.tokens: list[tuple[float, int]] = []
        self._num_requests = 0

    def open(self, claim: Claim) -> str | None:
        if self.budget.wait(claim.within(PER_MINUTE), self.now):
            return None
        self._num_requests += 1
        name = str(self._num_requests)
        self.used[name] = 0
        self.budget.reserve(name, claim, lambda: self.used[name], self.now)
        return name

    def count_prompt(self, name: str, num_tokens: int, answer: int) -> None:
        if self.budget.count_prompt(name, num_tokens, self.now):
            self.end(name)
            return
        self.limits[name] = answer
        self._add(name, num_tokens)

    def generate(self, name: str, num_tokens: int) -> None:
        num_tokens = min(num_tokens, self.limits[name])
        self.limits[name] -= num_tokens
        self._add(name, num_tokens)

    def end(self, name: str) -> None:
        self.budget.settle(name, self.now, has_begun=True)
        self.limits.pop(name, None)

    def _add(self, name: str, num_tokens: int) -> None:
        self.used[name] += num_tokens
        self.tokens.append((self.now, num_tokens))


steps = st.lists(
    st.tuples(
        st.sampled_from(["open", "generate", "end", "wait"]),
        st.integers(0, 400),  # the prompt's tokens, or the tokens to generate
        st.integers(0, 400),  # its estimate, or the seconds
        st.integers(1, 600),  # the token limit
    ),
    max_size=60,
)


# The first request uses what it has reserved only after the budget had a minute to refill.
@example(
    [
        ("open", 0, 0, 600),
        ("wait", 0, 60, 1),
        ("open", 0, 0, 600),
        ("generate", 400, 0, 1),
        ("generate", 399, 0, 1),
        ("generate", 399, 0, 1),
    ]
)
@given(steps)
def test_no_time_has_more_tokens_than_the_promise_allows(
    steps: list[tuple[str, int, int, int]],
) -> None:
    scene = Scene()
    for what, number, other, answer in steps:
        running = list(scene.limits)
        if what == "wait":
            scene.now += other
        elif what == "open":
            name = scene.open(Claim(other, answer))
            if name is not None:
                scene.count_prompt(name, number, answer)
        elif running:
            name = running[number % len(running)]
            scene.end(name) if what == "end" else scene.generate(name, number)
    for first, (begin, _) in enumerate(scene.tokens):
        total = 0
        for end, num_tokens in scene.tokens[first:]:
            total += num_tokens
            assert total <= PER_MINUTE * (1 + (end - begin) / 60) + 1e-6


@given(steps)
def test_everything_comes_back_after_a_minute_without_requests(
    steps: list[tuple[str, int, int, int]],
) -> None:
    scene = Scene()
    for what, number, other, answer in steps:
        name = scene.open(Claim(other, answer)) if what == "open" else None
        if name is not None:
            scene.count_prompt(name, number, answer)
    for name in list(scene.limits):
        scene.end(name)
    # A request that ends before its prompt was counted may cost more than is left.
    scene.now += 120
    assert scene.budget.left(scene.now) == PER_MINUTE


def test_a_wait_is_exact_if_nothing_runs() -> None:
    scene = Scene()
    name = scene.open(Claim(0, PER_MINUTE))
    assert name is not None
    scene.count_prompt(name, 0, PER_MINUTE)
    scene.generate(name, PER_MINUTE)
    scene.end(name)
    wait = scene.budget.wait(100, scene.now)
    assert wait == 10.0
    scene.now += wait - 0.01
    assert scene.open(Claim(0, 100)) is None
    scene.now += 0.02
    assert scene.open(Claim(0, 100)) is not None


def test_a_slow_stream_takes_only_what_it_uses_from_the_others() -> None:
    """It holds its whole limit at first; what it has used refills."""
    scene = Scene()
    name = scene.open(Claim(0, PER_MINUTE))
    assert name is not None
    scene.count_prompt(name, 0, PER_MINUTE)
    for _ in range(60):
        scene.now += 1
        scene.generate(name, 5)
        scene.budget.left(scene.now)
    assert 290 <= scene.budget.left(scene.now) <= 300


def test_a_prompt_is_estimated_by_its_bytes() -> None:
    assert estimated_prompt_tokens(Request("a", 1, prompt="x" * 400)) == 101
    assert estimated_prompt_tokens(Request("a", 1, prompt="\u4e2d" * 400)) == 301
    assert estimated_prompt_tokens(Request("a", 1, prompt_ids=(1, 2, 3))) == 3
    messages = (Message("user", "x" * 400), Message("assistant", "", reasoning="y" * 40))
    assert estimated_prompt_tokens(Request("a", 1, messages=messages)) == 127


def test_choices_divide_the_share_of_a_request_without_a_limit() -> None:
    claim = claim_of(
        Request("a", 8192, prompt="x"), 1000, has_limit=False, num_choices=5, counts_prompt=False
    )
    assert claim == Claim(0, 50)

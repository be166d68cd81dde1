"""The upstreams of one engine: looks at them, and lends them to requests.

In: the operator's configuration. Out: for each request an upstream of its model that is well, or a
wait until one is. `on_change` is told when the first upstream comes and when the last one goes,
`on_model` when a model comes that was not there at the start or has other slots, or when one of its
upstreams is another than before, and `on_turn` when any upstream goes or comes back.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence

from penstock.engine.protocol import UPSTREAM_COUNTS, UpstreamState
from penstock.engine.remote.config import UpstreamConfig
from penstock.engine.remote.failures import GivenUpError, RefusedError, UpstreamError
from penstock.engine.remote.health import MAX_PAUSE_S, Health
from penstock.engine.remote.http import HttpClient
from penstock.engine.remote.models import UNNAMED, Model, model_of, name_of
from penstock.engine.remote.probing import probe
from penstock.engine.remote.profile import DEFAULT_SLOTS, NAMES, Level, Profile
from penstock.engine.remote.routing import choose, seed_of

log = logging.getLogger(__name__)

# A name of a model that upstreams choose is shown up to here.
MAX_NAME = 200
CROWDED = (
    "No server runs this model now, and many requests wait for it. Send the request again later."
)


class Upstream:
    """One upstream, its health and its load."""

    def __init__(self, config: UpstreamConfig) -> None:
        self.name = config.name
        self.config = config
        self.client = HttpClient(config)
        self.health = Health()
        self.profile: Profile | None = None
        self.serves = ""
        """The name here of the model that it serves; "" until it is known."""
        self.missing: set[str] = set()
        """The paths for answers that the upstream does not have, as requests have shown."""
        self.seed = seed_of(config.name)
        self.weight = config.weight
        self.in_flight = 0
        self.num_requests = 0
        self.counts = dict.fromkeys(UPSTREAM_COUNTS, 0)
        self.look_time = 0.0
        """How long the last look took, in seconds."""
        self.on_turn: Callable[[], None] = lambda: None
        """Called when it goes or comes back."""
        self.failed = asyncio.Event()
        """Set by a failure, for the watch."""

    @property
    def is_up(self) -> bool:
        """Return True unless it is left out."""
        return self.health.state != "sick"

    @property
    def slots(self) -> int:
        """Return how many requests the upstream runs at once."""
        known = DEFAULT_SLOTS if self.profile is None else self.profile.slots
        return self.config.slots or known

    def leave_out(self) -> None:
        """Forget what it is: it does not fit."""
        self.profile, self.serves = None, ""

    def fail(self, error: UpstreamError | RefusedError, longest: float = MAX_PAUSE_S) -> None:
        """Note a failure, and say it in the log. For `longest` see `Health.fail`."""
        was_well = self.is_up
        self.counts["failures"] += 1
        now, chance = asyncio.get_running_loop().time(), random.random()  # noqa: S311 - jitter
        asked = error.pause if isinstance(error, UpstreamError) else 0.0
        self.health.fail(now, chance, longest, asked)
        self.failed.set()
        if was_well or self.health.num_failures <= 1:
            log.warning("the upstream %s is left out: %s", self.name, error)
        if was_well:
            self.on_turn()

    def answer(self) -> None:
        """Note that it has answered when it was looked at."""
        was_well = self.is_up
        self.health.answer()
        if not was_well:
            self.on_turn()


class Pool:
    """All upstreams. They are looked at every `interval` seconds, sick ones after their pauses.

    `name` is the name here of the models to which their upstreams' tables give none; "" if they
    have the upstreams' own names. For `level` and `context_length` see `models.model_of`.
    """

    def __init__(
        self,
        configs: Sequence[UpstreamConfig],
        interval: float,
        name: str,
        level: Level,
        context_length: int,
    ) -> None:
        self.upstreams = [Upstream(config) for config in configs]
        self.models: dict[str, Model] = {}
        """The models by their names here; none until `decide`."""
        self.on_change: Callable[[bool], None] = lambda has_one: None
        self.on_model: Callable[[], None] = lambda: None
        self.on_turn: Callable[[], None] = lambda: None
        self._interval = interval
        self._name = name
        self._level = level
        self._context_length = context_length
        self._changed = asyncio.Event()
        self._had_one = False
        self._looks: list[asyncio.Task[None]] = []
        for each in self.upstreams:
            each.on_turn = lambda: self.on_turn()

    async def look_at_all(self) -> None:
        """Look at every upstream once."""
        await asyncio.gather(*map(self._look, self.upstreams))

    def watch(self) -> None:
        """Look at every upstream again and again, until `stop`."""
        self._looks = [asyncio.create_task(self._watch(each)) for each in self.upstreams]

    async def stop(self) -> None:
        """Look at none any more."""
        for look in self._looks:
            look.cancel()
        await asyncio.gather(*self._looks, return_exceptions=True)

    @property
    def ready(self) -> list[Upstream]:
        """Return the upstreams that may get a request now."""
        return [each for each in self.upstreams if each.health.takes_requests]

    @property
    def known(self) -> list[Upstream]:
        """Return all upstreams that have answered a look."""
        return [each for each in self.upstreams if each.profile is not None]

    def serving(self, model: Model) -> list[Upstream]:
        """Return the upstreams that have answered a look and serve the model."""
        return [each for each in self.known if each.serves == model.name]

    def states(self) -> tuple[UpstreamState, ...]:
        """Return what every upstream does now, and has done."""
        return tuple(
            UpstreamState(
                each.name,
                (each.serves or each.config.serves or self._name)[:MAX_NAME],
                each.is_up,
                each.num_requests,
                look_time=each.look_time,
                **each.counts,
            )
            for each in self.upstreams
        )

    def has_upstream(self, model: Model) -> bool:
        """Return True if an upstream of the model is up."""
        return any(each.is_up and each.serves == model.name for each in self.upstreams)

    def decide(self) -> None:
        """Decide how the upstreams of each model are talked to; leave out those that do not fit."""
        for name in dict.fromkeys(each.serves for each in self.known):
            model = self._model_of(name)
            for upstream, profile in self._serving(name):
                try:
                    model.check(profile)
                except UpstreamError as error:
                    upstream.leave_out()
                    upstream.fail(error)
            if self._serving(name):
                self._add(name)

    async def take(
        self,
        model: Model,
        key: int,
        num_tokens: int,
        avoid: Upstream | None = None,
        able: Callable[[Upstream], bool] | None = None,
        *,
        asker: object,
        has_begun: bool = False,
        on_wait: Callable[[], None] = lambda: None,
    ) -> Upstream:
        """Return the upstream for a request, with the request counted. Waits until there is one.

        `asker` identifies the request for `Upstream.health`; pass the same one to `give_back`.
        `avoid` gets the request only if there is no other upstream. With `able`, only upstreams for
        which it returns True get the request. `on_wait` is called once if the request waits. Raises
        GivenUpError if too many requests wait for the model and the answer has not begun.
        """
        waits = False
        while not (ready := self._ready_for(model, able)):
            if model.num_waiting >= model.max_waiting and not has_begun:
                raise GivenUpError("engine_down", CROWDED)
            if not waits:
                waits = True
                on_wait()
            model.num_waiting += 1
            try:
                await self.wait()
            finally:
                model.num_waiting -= 1
        others = [each for each in ready if each is not avoid] or ready
        # At an upstream that is full, the request would wait, although another could run it now.
        free = [each for each in others if each.num_requests < each.slots]
        chosen = choose(key, num_tokens, free or others)
        chosen.in_flight += num_tokens
        chosen.num_requests += 1
        chosen.health.begin(asker)
        return chosen

    def _ready_for(self, model: Model, able: Callable[[Upstream], bool] | None) -> list[Upstream]:
        """Return the able upstreams that serve the model and may get a request now."""
        return [
            each
            for each in self.upstreams
            if each.serves == model.name
            and each.health.takes_requests
            and (able is None or able(each))
        ]

    async def wait(self) -> None:
        """Wait until an upstream may have become ready."""
        self._changed.clear()
        await self._changed.wait()

    def give_back(self, upstream: Upstream, num_tokens: int, asker: object) -> None:
        """Remove a request from the counts of an upstream, to which `take` has added it."""
        upstream.health.drop(asker)
        upstream.in_flight -= num_tokens
        upstream.num_requests -= 1
        self.tell()

    def tell(self) -> None:
        """Wake the requests that wait for an upstream, and tell `on_change`."""
        has_one = bool(self.ready)
        if has_one:
            self._changed.set()
        is_known = any(each.is_up for each in self.upstreams)
        if is_known != self._had_one:
            self._had_one = is_known
            self.on_change(is_known)

    async def is_unchanged(self, upstream: Upstream) -> bool:
        """Look at an upstream now. Return True if it is up and serves the same as before."""
        before = (upstream.profile, upstream.serves)
        await self._look(upstream)
        return upstream.is_up and (upstream.profile, upstream.serves) == before

    async def _watch(self, upstream: Upstream) -> None:
        loop = asyncio.get_running_loop()
        while True:
            upstream.failed.clear()
            if upstream.health.state == "sick":
                await asyncio.sleep(max(0.0, upstream.health.look_at - loop.time()))
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._interval):
                        await upstream.failed.wait()
                if upstream.failed.is_set():
                    continue
            await self._look(upstream)

    async def _look(self, upstream: Upstream) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            profile = await probe(upstream.client, upstream.config.model, (self._name,))
            name = upstream.config.serves or self._name or name_of(profile.model) or UNNAMED
            is_new = self._check(name, profile)
        except (UpstreamError, RefusedError) as error:
            # Upstreams that are well are looked at as often.
            upstream.fail(error, longest=self._interval)
        except Exception:  # a bug with one upstream must not end the others
            log.exception("the upstream %s could not be looked at", upstream.name)
            upstream.fail(UpstreamError("Penstock has a bug"))
        else:
            is_other = (upstream.profile, upstream.serves) != (profile, name)
            if upstream.profile != profile:
                upstream.missing.clear()
                log.info("the upstream %s %s", upstream.name, described(profile))
            elif upstream.health.state == "sick":
                log.info("the upstream %s answers again", upstream.name)
            upstream.profile, upstream.serves = profile, name
            if is_new:
                self._add(name)
            has_news = is_other and name in self.models
            if has_news:
                self.models[name].describe([each for _, each in self._serving(name)])
            if self._count_slots() or has_news:
                self.on_model()
            upstream.answer()
        upstream.look_time = round(loop.time() - began, 4)
        self.tell()

    def _count_slots(self) -> bool:
        """Add up the slots of each model's upstreams; return True if there are others now."""
        has_changed = False
        for model in self.models.values():
            slots = sum(each.slots for each, _ in self._serving(model.name))
            has_changed = has_changed or slots != model.slots
            model.slots = slots
        return has_changed

    def _check(self, name: str, profile: Profile) -> bool:
        """Return True if the model is a new one, after `decide`.

        Raises UpstreamError if an upstream does not fit the others of its model, or if its model is
        one too many: an upstream that names another model each time must not fill the memory.
        """
        model = self.models.get(name)
        if model is not None:
            model.check(profile)
        elif self.models and len(self.models) >= len(self.upstreams):
            raise UpstreamError("it serves another model than at the start: restart Penstock")
        return model is None and bool(self.models)

    def _add(self, name: str) -> None:
        model = self.models[name] = self._model_of(name)
        how = "token ids" if model.level == "ids" else "texts"
        log.info(
            "upstreams of the model %.200r: %d. They get %s", name, len(model.info.upstreams), how
        )

    def _model_of(self, name: str) -> Model:
        profiles = [profile for _, profile in self._serving(name)]
        slots = sum(each.slots for each, _ in self._serving(name))
        return model_of(name, profiles, slots, self._level, self._context_length)

    def _serving(self, name: str) -> list[tuple[Upstream, Profile]]:
        """Return the upstreams that serve the model, with their profiles."""
        return [
            (each, each.profile)
            for each in self.upstreams
            if each.profile is not None and each.serves == name
        ]


def described(profile: Profile) -> str:
    """Return a sentence's end that says what an upstream can do."""
    how = (
        "takes token ids: answers continue exactly after a failure"
        if profile.level == "ids"
        else "takes texts only: answers continue only where it can continue a text"
    )
    context = f"{profile.context_length} tokens" if profile.context_length else "unknown length"
    return (
        f"is {NAMES[profile.kind]} with the model {profile.model[:200]!r}, a context of {context}"
        f" and {profile.slots} slots. It {how}"
    )

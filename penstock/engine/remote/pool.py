"""The upstreams of one engine: looks at them, and lends them to requests.

In: the operator's configuration. Out: for each request an upstream of its model that is well, or a
wait until one is. `on_change` is told when the first upstream comes and when the last one goes, and
`on_model` when a model comes that was not there at the start.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence

from penstock.engine.remote.config import UpstreamConfig
from penstock.engine.remote.failures import GivenUpError, RefusedError, UpstreamError
from penstock.engine.remote.health import Health
from penstock.engine.remote.http import HttpClient
from penstock.engine.remote.models import UNNAMED, Model, model_of, name_of
from penstock.engine.remote.probing import probe
from penstock.engine.remote.profile import DEFAULT_SLOTS, NAMES, Level, Profile
from penstock.engine.remote.routing import choose, seed_of

log = logging.getLogger(__name__)

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
        self.seed = seed_of(config.name)
        self.weight = config.weight
        self.in_flight = 0
        self.num_requests = 0
        self.failed = asyncio.Event()
        """Set by a failure, for the watch."""

    @property
    def slots(self) -> int:
        """Return how many requests the upstream runs at once."""
        known = DEFAULT_SLOTS if self.profile is None else self.profile.slots
        return self.config.slots or known

    def leave_out(self) -> None:
        """Forget what it is: it does not fit."""
        self.profile, self.serves = None, ""

    def fail(self, error: Exception) -> None:
        """Note a failure, and say it in the log."""
        was_well = self.health.state != "sick"
        self.health.fail(asyncio.get_running_loop().time(), random.random())  # noqa: S311 - jitter
        self.failed.set()
        if was_well or self.health.num_failures <= 1:
            log.warning("the upstream %s is left out: %s", self.name, error)


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
        self._interval = interval
        self._name = name
        self._level = level
        self._context_length = context_length
        self._changed = asyncio.Event()
        self._had_one = False
        self._looks: list[asyncio.Task[None]] = []

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
        """Return all upstreams that have answered."""
        return [each for each in self.upstreams if each.profile is not None]

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
        among: Sequence[Upstream] | None = None,
        *,
        has_begun: bool = False,
    ) -> Upstream:
        """Return the upstream for a request, with the request counted. Waits until there is one.

        `avoid` gets it only if there is no other. With `among`, one of these gets it. Raises
        GivenUpError if too many requests wait for this model, and this one's answer has not begun.
        """
        candidates = self.upstreams if among is None else among
        while not (ready := _ready_for(model, candidates)):
            if model.num_waiting >= model.max_waiting and not has_begun:
                raise GivenUpError("engine_down", CROWDED)
            model.num_waiting += 1
            try:
                await self.wait()
            finally:
                model.num_waiting -= 1
        others = [each for each in ready if each is not avoid]
        chosen = choose(key, num_tokens, others or ready)
        chosen.in_flight += num_tokens
        chosen.num_requests += 1
        chosen.health.begin()
        return chosen

    async def wait(self) -> None:
        """Wait until an upstream may have become ready."""
        self._changed.clear()
        await self._changed.wait()

    def give_back(self, upstream: Upstream, num_tokens: int) -> None:
        """Count a request off."""
        upstream.in_flight -= num_tokens
        upstream.num_requests -= 1
        self.tell()

    def tell(self) -> None:
        """Wake who waits for an upstream, and tell `on_change`."""
        has_one = bool(self.ready)
        if has_one:
            self._changed.set()
        is_known = any(each.health.state != "sick" for each in self.upstreams)
        if is_known != self._had_one:
            self._had_one = is_known
            self.on_change(is_known)

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
        try:
            profile = await probe(upstream.client, upstream.config.model, (self._name,))
            name = upstream.config.serves or self._name or name_of(profile.model) or UNNAMED
            is_new = self._check(name, profile)
        except (UpstreamError, RefusedError) as error:
            upstream.fail(error)
        except Exception:  # a bug with one upstream must not end the others
            log.exception("the upstream %s could not be looked at", upstream.name)
            upstream.fail(UpstreamError("Penstock has a bug"))
        else:
            if upstream.profile != profile:
                log.info("the upstream %s %s", upstream.name, described(profile))
            elif upstream.health.state == "sick":
                log.info("the upstream %s answers again", upstream.name)
            upstream.profile, upstream.serves = profile, name
            if is_new:
                self._add(name)
                self.on_model()
            upstream.health.answer()
        self.tell()

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


def _ready_for(model: Model, upstreams: Sequence[Upstream]) -> list[Upstream]:
    """Return those of the upstreams that serve the model and may get a request now."""
    return [each for each in upstreams if each.serves == model.name and each.health.takes_requests]


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

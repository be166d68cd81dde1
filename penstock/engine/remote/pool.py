"""The upstreams of one engine: looks at them, and lends them to requests.

In: the operator's configuration. Out: for each request an upstream that is well, or a wait until
one is. `on_change` is told when the first upstream comes and when the last one goes.
"""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Sequence

from penstock.engine.remote.config import UpstreamConfig
from penstock.engine.remote.failures import RefusedError, UpstreamError
from penstock.engine.remote.health import Health
from penstock.engine.remote.http import HttpClient
from penstock.engine.remote.probing import probe
from penstock.engine.remote.profile import DEFAULT_SLOTS, NAMES, Level, Profile
from penstock.engine.remote.routing import choose, seed_of

log = logging.getLogger(__name__)


class Upstream:
    """One upstream, its health and its load."""

    def __init__(self, config: UpstreamConfig) -> None:
        self.name = config.name
        self.config = config
        self.client = HttpClient(config)
        self.health = Health()
        self.profile: Profile | None = None
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

    def fail(self, error: Exception) -> None:
        """Note a failure, and say it in the log."""
        was_well = self.health.state != "sick"
        self.health.fail(asyncio.get_running_loop().time(), random.random())  # noqa: S311 - jitter
        self.failed.set()
        if was_well or self.health.num_failures <= 1:
            log.warning("the upstream %s is left out: %s", self.name, error)


class Pool:
    """All upstreams. They are looked at every `interval` seconds, sick ones after their pauses.

    `names` are the names under which the model is served here.
    """

    def __init__(
        self, configs: Sequence[UpstreamConfig], interval: float, names: tuple[str, ...]
    ) -> None:
        self.upstreams = [Upstream(config) for config in configs]
        self.level: Level | None = None
        """How all upstreams are talked to; None until it is decided."""
        self.vocabulary = ""
        self.context_length = 0
        self.on_change: Callable[[bool], None] = lambda has_one: None
        self._interval = interval
        self._names = names
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
    def known(self) -> list[Profile]:
        """Return the profiles of all upstreams that have answered."""
        return [each.profile for each in self.upstreams if each.profile is not None]

    async def take(
        self,
        key: int,
        num_tokens: int,
        avoid: Upstream | None = None,
        among: Sequence[Upstream] | None = None,
    ) -> Upstream:
        """Return the upstream for a request, with the request counted. Waits until there is one.

        `avoid` gets it only if there is no other. With `among`, one of these gets it.
        """
        while not (ready := [each for each in self.ready if among is None or each in among]):
            await self.wait()
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

    def recheck(self) -> None:
        """Leave out the upstreams that do not fit the others."""
        for upstream in self.upstreams:
            if upstream.profile is None:
                continue
            try:
                self._check(upstream.profile)
            except UpstreamError as error:
                upstream.profile = None
                upstream.fail(error)

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
            profile = await probe(upstream.client, upstream.config.model, self._names)
            self._check(profile)
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
            upstream.profile = profile
            upstream.health.answer()
        self.tell()

    def _check(self, profile: Profile) -> None:
        """Raise UpstreamError if the upstream does not fit the others."""
        if self.level is None:
            return
        if self.level == "ids" and profile.vocabulary != self.vocabulary:
            raise UpstreamError("its model has another vocabulary than the other upstreams'")
        if profile.context_length and profile.context_length < self.context_length:
            raise UpstreamError(
                f"its context of {profile.context_length} tokens is shorter than the"
                f" {self.context_length} that Penstock promises"
            )


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

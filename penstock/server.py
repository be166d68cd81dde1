"""A server's life: it opens the socket, starts the engine, serves, reacts to signals and ends."""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import queue
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import uvloop

from penstock.api.live.state import REFUSALS, state_of
from penstock.api.siblings import Siblings
from penstock.api.stage import may_have_stage, stage_of
from penstock.app import create_apps
from penstock.draining import report_waiting
from penstock.engine.catalog import create_engine, entry_of
from penstock.engine.protocol import EngineHandle, ModelInfo
from penstock.errors import StartError
from penstock.observe.history import History
from penstock.observe.logs import report_loop_error
from penstock.observe.loop_lag import measure_loop_lag
from penstock.observe.memory import available_bytes, resident_bytes, return_freed_memory
from penstock.observe.meter import Meter
from penstock.service import Service
from penstock.settings import OLLAMA_PORT, Settings
from penstock.store.catalog import create_store
from penstock.store.names import MemoryNames
from penstock.stream.admission import UNREAD, Admission
from penstock.stream.fleet import Fleet
from penstock.stream.memory import MemoryGuard
from penstock.stream.registry import Limits, Replication, Streams, draining
from penstock.stream.stored import StoredStreams
from penstock.stream.straight import StraightPath
from penstock.stream.unread import Unread
from penstock.supervision import end_process, keep
from penstock.web.body import BodyReader
from penstock.web.granian import GranianServers
from penstock.web.host import is_loopback
from penstock.web.http1.accepting import Turns
from penstock.web.http1.server import Http1Server, Timeouts
from penstock.web.key_file import key_ring
from penstock.web.keys import KeyRing, watch_expiries
from penstock.web.listener import open_listener, url_of
from penstock.web.liveness import Liveness
from penstock.web.proxies import TrustedProxies
from penstock.web.tls import first_pair, tls_of

log = logging.getLogger(__name__)

# How long the last responses may take after the time for draining is up.
CLOSE_GRACE_S = 1.0
# How long a slow client has for data that is already in the HTTP server's hands.
IDLE_GRACE_S = 4.0
# Without --memory-limit: the rest is for the engine and for everything else on the machine.
DEFAULT_MEMORY_PART = 4
WANTED_OPEN_FILES = 65_536
# Probes and Prometheus; they ask one after the other.
ADMIN_CONNECTIONS = 64
# Python's own numbers (700, 10, 10) would search for cycles after every few requests. Requests
# leave none behind; their objects are freed at once.
GC_THRESHOLDS = (20_000, 20, 20)


@dataclass(frozen=True)
class Place:
    """A server's place among several processes at one address.

    All of them accept connections from `listener`. Unless `accepts_at_once`, this server accepts
    none before its model is loaded: until then the others do. `turns` says who accepts the next.
    Any process may answer at the admin port: it speaks for all. A private log ends with all
    processes.
    """

    listener: socket.socket
    admin_listener: socket.socket | None
    siblings: Siblings
    turns: Turns
    accepts_at_once: bool
    has_private_log: bool


class Server:
    """One server. `run` serves until `stop` is called; `url` is known once it listens.

    `on_loading` gets the engine's process id when the engine begins to load the model. `on_ready`
    gets the model's information when the model can be used. `on_waiting` gets the number of streams
    that a stopping server waits for, when it changes. Without a `place`, the server opens a
    listening socket of its own.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_ready: Callable[["Server", ModelInfo], None] = lambda server, info: None,
        on_loading: Callable[[int], None] = lambda pid: None,
        on_waiting: Callable[[int], None] = lambda number: None,
        place: Place | None = None,
    ) -> None:
        self._settings = settings
        self._place = place
        self._on_ready = on_ready
        self._on_loading = on_loading
        self._on_waiting = on_waiting
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drain_until = 0.0
        self._streams: Streams | None = None
        self._keys: KeyRing | None = None
        self.url = ""

    def stop(self) -> None:
        """Drain the streams and end. A second call ends the server at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def reload(self) -> None:
        """Read the file of keys again, and end the streams of keys that are no longer in it."""
        if self._keys is None or self._keys.is_open:
            return
        try:
            self._keys.reload()
        except StartError as error:
            fields = {"hint": error.hint} if error.hint else {}
            log.error("keeping the old keys: %s", error, extra={"fields": fields})
        else:
            level = logging.INFO if self._keys else logging.WARNING  # without keys all is refused
            log.log(level, "the server has %d keys", len(self._keys))
            if self._streams is not None:
                self._streams.end_unowned()

    @property
    def num_streams(self) -> int:
        """Return how many streams are open."""
        return len(self._streams) if self._streams is not None else 0

    async def run(self) -> None:
        """Serve until `stop`. Raises StartError."""
        settings = self._settings
        meter = Meter()
        straight = StraightPath(meter).deliver
        store = create_store(
            settings.log,
            patience=settings.log_timeout,
            sync=settings.log_sync,
            username=settings.log_username,
            password=settings.log_password,
        )
        stored = None if store is None else StoredStreams(store, settings.retain, straight, meter)
        engine = create_engine(
            settings.engine,
            settings.engine_settings,
            settings.engine_params,
            hang_timeout=settings.engine_timeout_chosen,
            on_spawn=self._on_loading,
            on_stopped=meter.abort.add,
            deliver=straight if stored is None else stored.deliver,
            pace=settings.pace_chosen,
        )
        replication = None
        if store is not None and stored is not None:
            lineages = functools.partial(_lineages_of, engine)
            fleet = Fleet(
                *(store, stored, lineages, settings.engine_restart_timeout),
                group=_group_of(self._place.listener) if self._place else "",
                outlives=not (self._place and self._place.has_private_log),
            )
            replication = Replication(stored, fleet)
        raise_file_limit()
        keys = self._keys = key_ring(settings.api_key, settings.admin_key, settings.keys)
        check_exposure(settings, keys)
        check_ollama(settings)
        check_admin(settings)
        proxies = TrustedProxies(settings.trusted_proxy)
        tls = tls_of(settings.tls_cert, settings.tls_key)
        pair = await first_pair(tls) if tls else None
        place = self._place
        listener = place.listener if place else listener_of(settings)
        admin_listener = place.admin_listener if place else admin_listener_of(settings)
        self.url = url_of(listener, "https" if tls else "http")
        limits = Limits(
            settings.linger,
            settings.retain,
            settings.retain_bytes,
            settings.engine_restart_timeout,
            settings.max_timeout,
        )
        admission = Admission(settings.slots, settings.max_queue)
        engine.on_info = functools.partial(share_slots, admission, settings.slots)
        streams = self._streams = Streams(
            [engine], limits, meter, admission, keys.problem_of, replication
        )
        patience = entry_of(settings.engine).patience_with(settings.engine_params)
        unread = Unread(streams, patience)
        liveness = Liveness(settings.heartbeat, settings.stall_timeout)
        bodies = BodyReader(
            max_bytes=settings.max_body_bytes,
            timeout=settings.body_timeout,
            strict=settings.strict,
        )
        memory = MemoryGuard(
            settings.memory_limit_bytes or available_bytes() // DEFAULT_MEMORY_PART,
            streams,
            lambda: bodies.intake.shares.held,
            resident_bytes,
            return_freed_memory,
        )
        history = History(meter, functools.partial(state_of, engine, streams), REFUSALS)
        apps = create_apps(
            *(settings, engine, streams, unread, liveness, bodies, keys, proxies, memory),
            MemoryNames() if store is None else store,
            history,
            siblings=place.siblings if place else None,
            stage=stage_of(settings, engine, liveness),
        )
        timeouts = Timeouts(keep_alive=settings.keepalive_timeout, stall=settings.stall_timeout)
        http: Http1Server | GranianServers
        if tls is not None or settings.http2:
            http = GranianServers(
                *(apps.clients, listener, settings.max_connections, timeouts, proxies.trusts),
                http2=settings.http2,
                tls=tls,
                pair=pair,
            )
        else:
            http = Http1Server(
                *(
                    apps.clients,
                    [listener, *ollama_listeners(settings)],
                    settings.max_connections,
                    timeouts,
                    proxies.trusts,
                ),
                turns=place.turns if place else None,
            )
        if store is not None and replication is not None:
            await store.start(replication.fleet)
        closing = asyncio.Event()
        accepting = asyncio.Event()
        if place is None or place.accepts_at_once:
            accepting.set()
        serving = asyncio.create_task(serve_between(accepting, closing, http))
        telling = None
        if apps.admin is not None and admin_listener is not None:
            admin = Http1Server(apps.admin, [admin_listener], ADMIN_CONNECTIONS, timeouts)
            # Until the end: a server that loads or drains says so there.
            telling = keep("admin port", functools.partial(admin.serve_until, asyncio.Event()))
        watching = keep("liveness", liveness.run)
        guarding = keep("memory guard", memory.run)
        measure = functools.partial(measure_loop_lag, meter.loop_lag)
        measuring = keep("loop lag", measure, is_essential=False)
        remembering = keep("history", history.run, is_essential=False)
        expire = functools.partial(watch_expiries, keys, streams.end_unowned)
        expiring = keep("key expiries", expire)
        sharing = None
        if replication is not None:
            share = functools.partial(streams.share_limits, replication.fleet.exchange)
            sharing = keep("limits over replicas", share, is_essential=False)
        try:
            info = await self._unless_stopped(engine.start())
            if info is not None:
                engine.on_info(info)
                unread.model_is_known()
                # Freeze start-up objects so that garbage collection skips them: looking at all of
                # them would delay every stream by tens of milliseconds.
                gc.collect()
                gc.freeze()
                gc.set_threshold(*GC_THRESHOLDS)
                if replication is not None:
                    await replication.fleet.announce()
                accepting.set()
                self._on_ready(self, info)
                await self._until_stopped(serving)
            else:
                unread.refuse(draining)
            reporting = asyncio.create_task(report_waiting(streams.__len__, self._on_waiting))
            await self._announce_end(streams)
            bodies.refuse(draining)
            await self._drain(streams)
            reporting.cancel()
        finally:
            streams.shut_down()
            closing.set()
            accepting.set()
            await self._close(serving, apps.clients.idle)
            watching.cancel()
            guarding.cancel()
            measuring.cancel()
            remembering.cancel()
            expiring.cancel()
            if sharing is not None:
                sharing.cancel()
            if telling is not None:
                telling.cancel()
            await engine.stop()
            if store is not None and replication is not None:
                replication.fleet.close()
                await store.stop()
            listener.close()
            if admin_listener is not None:
                admin_listener.close()

    async def _until_stopped(self, serving: asyncio.Task[None]) -> None:
        """Wait for `stop`. If the HTTP server ends by itself, end the process with the reason."""
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({stop, serving}, return_when=asyncio.FIRST_COMPLETED)
        if not stop.done():
            stop.cancel()
            error = serving.exception() if not serving.cancelled() else None
            log.error("the HTTP server failed", exc_info=error)
            end_process("the HTTP server has ended")

    async def _announce_end(self, streams: Streams) -> None:
        """Be unready for a while, so that balancers send nothing more, and serve meanwhile."""
        streams.is_leaving = True
        if self._settings.drain_grace:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.drain_grace):
                    await self._hurry.wait()

    async def _drain(self, streams: Streams) -> None:
        self._drain_until = time.monotonic() + self._settings.drain_timeout
        drain = asyncio.create_task(streams.drain(self._settings.drain_timeout))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        drain.cancel()

    async def _close(self, serving: asyncio.Task[None], idle: asyncio.Event) -> None:
        """Wait for the last responses until the drain timeout, then cut them.

        A client that does not read could otherwise hold the server for ever, and so could a client
        that only keeps its connection open. Such connections are all that is left soon after the
        server is `idle`.
        """

        async def only_kept_alive() -> None:
            await idle.wait()
            await asyncio.sleep(IDLE_GRACE_S)

        left = max(0.0, self._drain_until - time.monotonic())
        reasons = {asyncio.create_task(only_kept_alive()), asyncio.create_task(self._hurry.wait())}
        await asyncio.wait({serving, *reasons}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for reason in reasons:
            reason.cancel()
        await asyncio.wait({serving}, timeout=CLOSE_GRACE_S)
        if serving.done():
            serving.result()
            return
        if not idle.is_set():
            log.warning("closed connections whose clients did not take their responses")
        serving.cancel()

    async def _unless_stopped(self, starting: Coroutine[Any, Any, ModelInfo]) -> ModelInfo | None:
        """Return the result of `starting`, or None if the server is stopped first."""
        start = asyncio.ensure_future(starting)
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            stop.cancel()
            return start.result()
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError, StartError):
            await start
        return None


def _lineages_of(engine: EngineHandle) -> dict[str, str]:
    """Return what two servers have in common if one can continue the other's streams.

    That is a text for each model of the engine, by the model's name. The first model also has the
    name "": that of requests without a model. Returns {} while the engine can take no streams.
    """
    info = engine.info
    if info is None or engine.state != "ready":
        return {}
    named = {each.id: _lineage_of(each) for each in info.models}
    return {"": _lineage_of(info), info.id: _lineage_of(info)} | named


def _lineage_of(info: ModelInfo) -> str:
    lineage = f"{info.engine}/{info.id}/{info.vocabulary_size}"
    return f"{lineage}/{info.vocabulary}" if info.vocabulary else lineage


def share_slots(admission: Admission, slots: int, info: ModelInfo) -> None:
    """Give out `slots` slots, or as many as the engine has, and to each model its own at most."""
    admission.num_slots = slots or info.slots
    admission.default_model = info.id
    models = (info, *info.models) if info.models else ()
    unread = {UNREAD: 0} if UNREAD in admission.bounds else {}
    own = {each.id: each.own_slots for each in models if each.own_slots is not None}
    admission.bounds = own | unread


async def serve_between(
    accepting: asyncio.Event, closing: asyncio.Event, http: Http1Server | GranianServers
) -> None:
    """Serve from `accepting` until `closing` is set and every response has ended."""
    await accepting.wait()
    if not closing.is_set():
        await http.serve_until(closing)


def listener_of(settings: Settings) -> socket.socket:
    """Return a new listening socket. Raises StartError if the address is not available."""
    return open_listener(
        settings.host, settings.port, settings.max_connections, settings.stall_timeout
    )


def admin_listener_of(settings: Settings) -> socket.socket | None:
    """Return a new listening socket for the admin port, None if the settings name no such port.

    Raises StartError if the address is not available.
    """
    if not settings.admin_port:
        return None
    listener = open_listener(
        *(settings.admin_host, settings.admin_port, ADMIN_CONNECTIONS, settings.stall_timeout),
        flags="--admin-",
    )
    address, _ = listener.getsockname()[:2]
    log.info("health and metrics, without keys, are at %s; bound to %s", url_of(listener), address)
    return listener


def with_local_model(settings: Settings) -> Settings:
    """Return `settings` with a `model` that the engine can load from this machine.

    Downloads the model with a progress bar if necessary, so call it before an event loop runs.
    Raises StartError if there is no such model.
    """
    model = entry_of(settings.engine).find_model(settings.model)
    names = ",".join(settings.served_names)
    chosen: dict[str, Any] = {"model": model, "model_name": names, "pace": settings.pace_chosen}
    chosen["engine_timeout"] = settings.engine_timeout_chosen
    if "demo" not in settings.model_fields_set:
        chosen["demo"] = settings.is_built_in and may_have_stage(settings)
    return settings.model_copy(update=chosen)


def check_exposure(settings: Settings, keys: KeyRing) -> None:
    """Raise StartError if strangers could use the server without a key."""
    if not keys.is_open or settings.insecure or is_loopback(settings.host):
        return
    raise StartError(
        f"Anyone who reaches {settings.host} could use this server, because it has no key.",
        "Make a key with `penstock key` and give it with --api-key or --keys FILE, or serve"
        " without keys: --insecure.",
    )


def check_ollama(settings: Settings) -> None:
    """Raise StartError if Ollama's clients could not speak with the server."""
    if settings.ollama and (settings.tls_cert or settings.http2):
        raise StartError(
            "Ollama's clients speak plain HTTP/1.1 on Ollama's port.",
            "Leave out --ollama, or --tls-cert and --http2.",
        )


def check_admin(settings: Settings) -> None:
    """Raise StartError if the admin port is the port of the clients."""
    if settings.admin_port and settings.admin_port == settings.port:
        raise StartError(
            f"The admin port and the port are both {settings.port}.",
            "Give the admin port a number of its own: --admin-port 9000",
        )


def ollama_listeners(settings: Settings) -> list[socket.socket]:
    """Return a listener on Ollama's port, if the settings ask for it and the port is free."""
    if not settings.ollama or settings.port == OLLAMA_PORT:
        return []
    try:
        listener = open_listener(
            settings.host, OLLAMA_PORT, settings.max_connections, settings.stall_timeout
        )
    except StartError:
        log.warning(
            "cannot listen on Ollama's port %d; is Ollama running? Its clients find this server"
            " only at its own port",
            OLLAMA_PORT,
        )
        return []
    log.info("Ollama's clients find the server at %s", url_of(listener))
    return [listener]


def raise_file_limit() -> None:
    """Allow more open files: every connection is one, and the default limit is low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_OPEN_FILES if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class Runnable(Protocol):
    """A server, or a supervisor of several."""

    def stop(self) -> None:
        """Drain the streams and end. A second call ends at once."""

    def reload(self) -> None:
        """Read the file of keys again."""

    async def run(self) -> None:
        """Serve until `stop`. Raises StartError."""


def run(make_server: Callable[[], Runnable], service: Service) -> None:
    """Serve in this process until SIGINT or SIGTERM, and tell `service`. Raises StartError."""

    async def main() -> None:
        server = make_server()

        def stop() -> None:
            service.stopping()
            server.stop()

        def reload() -> None:
            service.reloading()
            server.reload()
            service.ready()

        loop = asyncio.get_running_loop()
        loop.set_exception_handler(report_loop_error)
        # Not the loop's handlers: between their removal and SIG_IGN below, a signal would kill.
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            signal.signal(number, lambda _, __: loop.call_soon_threadsafe(stop))
        loop.add_signal_handler(signal.SIGHUP, reload)
        watching = keep("watchdog", service.feed_watchdog)
        await server.run()
        watching.cancel()
        for number in numbers:  # a late signal would turn a clean exit into a failure
            signal.signal(number, signal.SIG_IGN)

    uvloop.run(main())


@contextlib.contextmanager
def local_server(settings: Settings) -> Iterator[str]:
    """Run a server in a thread while the context lasts; yield its URL. Raises StartError."""
    started: queue.SimpleQueue[Server | BaseException] = queue.SimpleQueue()

    settings = with_local_model(settings)

    async def main() -> None:
        server = Server(settings, on_ready=lambda server, _: started.put(server))
        stops.append((asyncio.get_running_loop(), server))
        await server.run()

    def thread() -> None:
        try:
            uvloop.run(main())
        except BaseException as error:
            started.put(error)

    stops: list[tuple[asyncio.AbstractEventLoop, Server]] = []
    runner = threading.Thread(target=thread, name="penstock-server", daemon=True)
    runner.start()
    first = started.get()
    if isinstance(first, BaseException):
        runner.join()
        raise first
    try:
        yield first.url
    finally:
        loop, server = stops[0]
        loop.call_soon_threadsafe(server.stop)
        loop.call_soon_threadsafe(server.stop)  # the second call skips draining
        runner.join()


def _group_of(listener: socket.socket) -> str:
    """Return a name for all processes that share a listening socket."""
    return f"{socket.gethostname()} {os.fstat(listener.fileno()).st_ino}"

"""A server's life: the listening socket, the engine, the application, signals and the end.

In: settings. Out: an exit, clean or with the reason. Not known here: routes, streams' insides.
"""

import asyncio
import contextlib
import errno
import gc
import logging
import queue
import resource
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import uvloop

from penstock.app import create_app
from penstock.engine.catalog import create_engine, entry_of
from penstock.engine.protocol import ModelInfo
from penstock.errors import StartError
from penstock.observe.logs import report_loop_error
from penstock.observe.loop_lag import measure_loop_lag
from penstock.observe.meter import Meter
from penstock.settings import Settings
from penstock.stream.admission import Admission
from penstock.stream.registry import Limits, Streams, draining
from penstock.web.auth import KeyRing, key_ring
from penstock.web.body import BodyReader
from penstock.web.granian import Web, listen, tls_of
from penstock.web.host import is_loopback
from penstock.web.liveness import Liveness

log = logging.getLogger(__name__)

# What a last response is given to get out, when the time for draining is up.
CLOSE_GRACE_S = 1.0
# How long a client that reads slowly has for what was handed over to the HTTP library for it.
IDLE_GRACE_S = 4.0


class Server:
    """One server. `run` serves until `stop` is called; `url` is known once it listens.

    `on_loading` is called with the engine's process id when that begins to load the model, and
    `on_ready` with the model's information when it can be asked.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        on_ready: Callable[["Server", ModelInfo], None] = lambda server, info: None,
        on_loading: Callable[[int], None] = lambda pid: None,
    ) -> None:
        self._settings = settings
        self._on_ready = on_ready
        self._on_loading = on_loading
        self._stopping = asyncio.Event()
        self._hurry = asyncio.Event()
        self._drain_until = 0.0
        self._streams: Streams | None = None
        self._keys: KeyRing | None = None
        self.url = ""

    def stop(self) -> None:
        """Drain and end. Called again, end at once."""
        if self._stopping.is_set():
            self._hurry.set()
        self._stopping.set()

    def reload(self) -> None:
        """Read the file of keys again. Streams that are open go on."""
        if self._keys is None or self._keys.is_open:
            return
        try:
            self._keys.reload()
        except StartError as error:
            log.error("the keys stay as they were. %s", error)
        else:
            level = logging.INFO if self._keys else logging.WARNING  # now nobody comes in
            log.log(level, "the server has %d keys", len(self._keys))

    @property
    def num_streams(self) -> int:
        """Streams that are open."""
        return len(self._streams) if self._streams is not None else 0

    async def run(self) -> None:
        """Serve. Raises StartError."""
        settings = self._settings
        meter = Meter()
        engine = create_engine(
            settings.engine,
            settings.engine_settings,
            settings.engine_params,
            hang_timeout=settings.engine_timeout,
            on_spawn=self._on_loading,
            on_cancelled=meter.abort.add,
        )
        raise_file_limit()
        keys = self._keys = key_ring(settings.api_key, settings.admin_key, settings.keys)
        check_door(settings, keys)
        tls = tls_of(settings.tls_cert, settings.tls_key)
        listener = open_listener(settings)
        self.url = url_of(listener, "https" if tls else "http")
        limits = Limits(
            settings.linger,
            settings.retain,
            settings.retain_bytes,
            settings.engine_restart_timeout,
            settings.max_timeout,
        )
        admission = Admission(settings.slots, settings.max_queue)
        streams = self._streams = Streams([engine], limits, meter, admission)
        liveness = Liveness(settings.heartbeat, settings.stall_timeout)
        bodies = BodyReader(max_bytes=settings.max_body_bytes, timeout=settings.body_timeout)
        app = create_app(settings, engine, streams, liveness, bodies, keys)
        closing = asyncio.Event()
        web = Web(app, listener, settings.max_connections, http2=settings.http2, tls=tls)
        serving = asyncio.create_task(web.serve_until(closing))
        beating = asyncio.create_task(liveness.run())
        measuring = asyncio.create_task(measure_loop_lag(meter.loop_lag))
        try:
            info = await self._unless_stopped(engine.start())
            if info is not None:
                admission.num_slots = settings.slots or info.slots
                # What is here now stays: the garbage collector need not look at it every time,
                # which would hold up every stream for tens of milliseconds.
                gc.collect()
                gc.freeze()
                self._on_ready(self, info)
                await self._stopping.wait()
            bodies.refuse(draining)
            await self._drain(streams)
        finally:
            streams.shut_down()
            closing.set()
            await self._close(serving, app.idle)
            beating.cancel()
            measuring.cancel()
            await engine.stop()
            listener.close()

    async def _drain(self, streams: Streams) -> None:
        self._drain_until = time.monotonic() + self._settings.drain_timeout
        drain = asyncio.create_task(streams.drain(self._settings.drain_timeout))
        hurry = asyncio.create_task(self._hurry.wait())
        await asyncio.wait({drain, hurry}, return_when=asyncio.FIRST_COMPLETED)
        hurry.cancel()
        drain.cancel()

    async def _close(self, serving: asyncio.Task[None], idle: asyncio.Event) -> None:
        """Wait for the last responses as long as draining may take, then cut them: a client that
        does not read could hold the server for ever. So could one that only keeps a connection
        open, which is all that there is soon after the server is `idle`."""

        async def kept_open() -> None:
            await idle.wait()
            await asyncio.sleep(IDLE_GRACE_S)

        left = max(0.0, self._drain_until - time.monotonic())
        reasons = {asyncio.create_task(kept_open()), asyncio.create_task(self._hurry.wait())}
        await asyncio.wait({serving, *reasons}, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        for reason in reasons:
            reason.cancel()
        await asyncio.wait({serving}, timeout=CLOSE_GRACE_S)
        if serving.done():
            serving.result()
            return
        if not idle.is_set():
            log.warning("cut connections whose clients did not take their answers")
        serving.cancel()

    async def _unless_stopped(self, starting: Any) -> ModelInfo | None:
        """The result of `starting`, or None where the server is stopped first."""
        start = asyncio.ensure_future(starting)
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({start, stop}, return_when=asyncio.FIRST_COMPLETED)
        if start.done():
            stop.cancel()
            info: ModelInfo = start.result()
            return info
        start.cancel()
        with contextlib.suppress(asyncio.CancelledError, StartError):
            await start
        return None


def with_local_model(settings: Settings) -> Settings:
    """Return `settings` with a `model` that the engine can load from this machine.

    Downloads the model with a progress bar if necessary, so call it before an event loop runs.
    Raises StartError if there is no such model.
    """
    model = entry_of(settings.engine).find_model(settings.model)
    return settings.model_copy(update={"model": model, "model_name": settings.served_name})


def check_door(settings: Settings, keys: KeyRing) -> None:
    """Raises StartError where strangers could come in without a key."""
    if not keys.is_open or settings.insecure or is_loopback(settings.host):
        return
    raise StartError(
        f"Whoever reaches {settings.host} could use this server: it has no key.",
        "Give it one (`penstock key` makes one: --api-key, or --keys FILE), or say --insecure.",
    )


def open_listener(settings: Settings) -> socket.socket:
    """The listening socket. Raises StartError where the address cannot be had."""
    host, port = settings.host, settings.port
    try:
        # The kernel's clock starts before ours, and cannot tell slow from dead so well.
        give_up_after = max(2 * settings.stall_timeout, settings.stall_timeout + 10)
        return listen(host, port, settings.max_connections, give_up_after)
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: (
                f"Port {port} is in use on {host}.",
                f"Stop what listens there, or take another: --port {port + 1}",
            ),
            errno.EACCES: (
                f"Port {port} on {host} is not allowed to this user.",
                "Ports below 1024 are the administrator's. Take another: --port 8000",
            ),
        }
        unknown = (
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            "Give an address of this machine: --host 127.0.0.1",
        )
        raise StartError(*reasons.get(error.errno or 0, unknown)) from None


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - compared, not bound
    return f"{scheme}://{host}:{port}"


def raise_file_limit() -> None:
    """Every connection is an open file, and systems start out with few."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 65536 if hard == resource.RLIM_INFINITY else hard
    if soft < wanted:
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def run(server_of: Callable[[], Server]) -> None:
    """Serve in this process until it is told to stop (SIGINT, SIGTERM). Raises StartError."""

    async def main() -> None:
        server = server_of()
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(report_loop_error)
        numbers = (signal.SIGINT, signal.SIGTERM)
        for number in numbers:
            loop.add_signal_handler(number, server.stop)
        loop.add_signal_handler(signal.SIGHUP, server.reload)
        await server.run()
        for number in numbers:  # one that comes while the interpreter ends would make it a failure
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_IGN)

    uvloop.run(main())


@contextlib.contextmanager
def local_server(settings: Settings) -> Iterator[str]:
    """A server of one's own for a while, in a thread; yields its URL. Raises StartError."""
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
        loop.call_soon_threadsafe(server.stop)  # without waiting for open streams
        runner.join()

"""redis-py for what is rare: scripts, reads, shared values. Its errors become StoreErrors."""

from collections.abc import Iterable, Sequence
from typing import Any

from redis.asyncio import BlockingConnectionPool, Redis, SSLConnection
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoScriptError, RedisError

from penstock.store.redis.address import Address
from penstock.store.redis.scripts import Script
from penstock.store.redis.trouble import store_error

TIMEOUT_S = 5.0
MAX_CONNECTIONS = 16
"""Calls beyond these wait for their turn."""


class Client:
    """A small pool of connections."""

    def __init__(self, address: Address) -> None:
        self._address = address
        tls: dict[str, Any] = {"connection_class": SSLConnection} if address.tls else {}
        pool = BlockingConnectionPool(
            max_connections=MAX_CONNECTIONS,
            timeout=TIMEOUT_S,
            host=address.host,
            port=address.port,
            db=address.db,
            username=address.username or None,
            password=address.password or None,
            socket_timeout=TIMEOUT_S,
            socket_connect_timeout=TIMEOUT_S,
            retry=Retry(NoBackoff(), 1),
            protocol=2,
            **tls,
        )
        self._redis = Redis.from_pool(pool)  # which it closes
        for name in ("SET", "XRANGE", "XREAD"):
            # redis-py would make a dictionary of each entry, and hide the old value of SET GET.
            self._redis.set_response_callback(name, _as_it_is)

    async def call(self, *words: bytes | str | int | float) -> Any:
        """Return the reply to a command. Raises StoreError."""
        try:
            return await self._redis.execute_command(*words)  # type: ignore[no-untyped-call]
        except (RedisError, OSError, TimeoutError) as error:
            raise store_error(error, self._address) from None

    async def call_all(self, commands: Iterable[Sequence[bytes | str | int | float]]) -> list[Any]:
        """Return the replies to commands that are sent together. Raises StoreError."""
        pipeline = self._redis.pipeline(transaction=False)
        for words in commands:
            pipeline.execute_command(*words)
        try:
            return await pipeline.execute()
        except (RedisError, OSError, TimeoutError) as error:
            raise store_error(error, self._address) from None

    async def run(
        self, script: Script, keys: list[str], *arguments: bytes | str | int | float
    ) -> Any:
        """Return what a script returns. Raises StoreError."""
        try:
            try:
                return await self._redis.evalsha(script.sha, len(keys), *keys, *arguments)
            except NoScriptError:
                return await self._redis.eval(script.text, len(keys), *keys, *arguments)
        except (RedisError, OSError, TimeoutError) as error:
            raise store_error(error, self._address) from None

    async def close(self) -> None:
        """Close all connections."""
        await self._redis.aclose()


def _as_it_is(response: Any, **_: Any) -> Any:
    return response

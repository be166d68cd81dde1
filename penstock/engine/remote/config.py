"""The upstreams that the operator names: addresses, keys, weights.

In: the URLs of `--upstream` and the tables `[[engine.remote.upstreams]]`. Out: an `UpstreamConfig`
for each, or a StartError that names the mistake. A key comes from a variable or a file, and is in
no message.
"""

import os
import ssl
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import msgspec

from penstock.errors import StartError

MAX_UPSTREAMS = 256
MAX_KEY_BYTES = 4096


class UpstreamTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A table `[[engine.remote.upstreams]]`.

    `weight` is the upstream's part of the load, beside the others' weights. `key_env` names the
    variable, and `key_file` the file, with the key that the upstream asks for. `ca` is a PEM file
    with the certificates that sign the upstream's. `model` is the model's name there, if it serves
    several; `serves` is the model's name here. `slots` is the number of requests that it runs at
    once; 0 asks it, or means 64.
    """

    url: str
    weight: float = 1.0
    key_env: str = ""
    key_file: str = ""
    ca: str = ""
    model: str = ""
    serves: str = ""
    slots: int = 0


class UpstreamConfig(msgspec.Struct, frozen=True):
    """One upstream.

    `name` is its address without a key, for logs and metrics. If the table names one of its models,
    "#" and that name follow: so each upstream has a name of its own.
    """

    name: str
    host: str
    port: int
    prefix: str
    weight: float
    key: str
    tls: ssl.SSLContext | None
    model: str
    serves: str
    slots: int


def upstreams_of(
    urls: Sequence[str], tables: Sequence[Mapping[str, Any]], key: str
) -> list[UpstreamConfig]:
    """Return all upstreams; those of `urls` have the key `key`. Raises StartError."""
    configs = [_config_of(UpstreamTable(url), key) for url in urls]
    for number, table in enumerate(tables, 1):
        try:
            read = msgspec.convert(table, UpstreamTable)
        except msgspec.ValidationError as error:
            raise StartError(
                f"Upstream {number} in the configuration is not valid: {error}.",
                'Write [[engine.remote.upstreams]] and url = "http://host:port" below it.',
            ) from None
        configs.append(_config_of(read, _key_of(read)))
    if not configs:
        raise StartError("The remote engine has no upstream.", "Give --upstream http://host:port.")
    if len(configs) > MAX_UPSTREAMS:
        raise StartError(f"There are more than {MAX_UPSTREAMS} upstreams.")
    names = [each.name for each in configs]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise StartError(
            f"The upstream {twice} is named twice.",
            "Give it a weight of 2. If it serves several models, give each its table with model.",
        )
    return configs


def _config_of(table: UpstreamTable, key: str) -> UpstreamConfig:
    try:
        parts = urlsplit(table.url)
        port = parts.port
    except ValueError:
        raise _bad_url() from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not table.url.isascii():
        raise _bad_url()
    if (
        parts.username is not None
        or parts.query
        or parts.fragment
        or any(each.isspace() or ord(each) < 32 for each in table.url)
    ):
        raise _bad_url()
    if not 0 < table.weight <= 1_000_000 or not 0 <= table.slots <= 4096:
        raise StartError(
            "An upstream's weight must be positive, and its slots at most 4,096.",
            "Leave both out for equal upstreams.",
        )
    port = port or (443 if parts.scheme == "https" else 80)
    prefix = parts.path.rstrip("/").removesuffix("/v1")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return UpstreamConfig(
        f"{parts.scheme}://{host}:{port}{prefix}" + (f"#{table.model}" if table.model else ""),
        parts.hostname,
        port,
        prefix,
        table.weight,
        key,
        _tls_of(table.ca) if parts.scheme == "https" else None,
        table.model,
        table.serves,
        table.slots,
    )


def _bad_url() -> StartError:
    # The URL may contain a password: it is not repeated.
    return StartError(
        "An upstream's URL is not valid.",
        "Use http://host:port or https://host, without a name, a key or a query.",
    )


def _key_of(table: UpstreamTable) -> str:
    if table.key_env:
        key = os.environ.get(table.key_env, "")
        if not key:
            raise StartError(f"The variable {table.key_env} has no key for an upstream.")
        return _checked(key)
    if not table.key_file:
        return ""
    try:
        return _checked(Path(table.key_file).read_text(encoding="utf-8").strip())
    except (OSError, ValueError):
        raise StartError(
            f"The key file {table.key_file} of an upstream cannot be read.",
            "It must contain the key, and nothing else.",
        ) from None


def _checked(key: str) -> str:
    if not key.isascii() or not key.isprintable() or not 0 < len(key) <= MAX_KEY_BYTES:
        raise StartError("An upstream's key is not valid.", "Use one line of printable ASCII.")
    return key


def _tls_of(ca: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=ca or None)
    except (OSError, ValueError):
        raise StartError(
            f"The file {ca} with an upstream's CA cannot be read.", "It must be PEM."
        ) from None

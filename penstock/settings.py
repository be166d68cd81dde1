"""The settings: name, unit, default and effect of each, in one model.

In: flags of `penstock serve`, `PENSTOCK_*` variables, and `penstock.toml`. Out: `Settings`, or a
StartError that names the mistake. A flag wins over a variable, and a variable over the file. The
docstring of each setting is also its `--help` text and its reference documentation.
"""

import difflib
import os
import re
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from penstock.config_file import ConfigFile
from penstock.engine.catalog import (
    BUILT_IN_MODEL,
    DEFAULT_ENGINE,
    ENGINES,
    REMOTE_ENGINE,
    entry_of,
    is_engine,
)
from penstock.errors import StartError, reason_from_pydantic

ENV_PREFIX = "PENSTOCK_"
OLLAMA_PORT = 11434

MIN_MEMORY_LIMIT = 256 * 1024 * 1024
"""The least `memory_limit`, in bytes: an idle server takes about 100 MiB."""

LogFormat = Literal["text", "json"]
# About as fast as people read. The built-in model is so fast that nobody would see it stream.
BUILT_IN_PACE = 30.0
# The built-in model takes milliseconds for a step, so an engine that is silent for so long hangs.
BUILT_IN_ENGINE_TIMEOUT_S = 10.0
# The form that browsers send: no path, not even a slash.
Origin = Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/\s]+)$")]


def _known_engine(name: str) -> str:
    if is_engine(name):
        return name
    known = ", ".join(repr(each) for each in ENGINES)
    raise ValueError(f"use {known}, or your own engine as 'package.module:Class'")


def _checked_size(text: str) -> str:
    if text and _bytes_of(text) < MIN_MEMORY_LIMIT:
        raise ValueError(f"use at least {MIN_MEMORY_LIMIT >> 20}M")
    return text


def _bytes_of(text: str) -> int:
    """Return a size in bytes. Raises ValueError if it is none."""
    found = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if found is None:
        raise ValueError("use a number of bytes, or a number with K, M or G: 512M, 2G")
    return int(float(found[1]) * 1024 ** " KMGT".index(found[2].upper() or " "))


class Settings(BaseSettings):
    """The settings of one server."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    model: str = BUILT_IN_MODEL
    """The model to serve: a GGUF file (./x.gguf), a repository on the Hugging Face hub
    (owner/repo, or owner/repo:Q4_K_M for one of its files), or rill, the built-in model.
    For vllm: a folder with a Hugging Face checkpoint, or owner/repo."""
    model_name: str = ""
    """The name under which the model is served. More names, after commas, are aliases
    (rill,claude-sonnet-4-5): requests may use them, and answers repeat the name that the request
    used. [default: derived from the model]"""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port to listen on; 0 chooses a free port."""
    admin_port: Annotated[int, Field(ge=0, le=65535)] = 0
    """A second port, with only /health and /metrics, in plain HTTP and without keys: for probes and
    Prometheus. 0 means none."""
    admin_host: str = "127.0.0.1"
    """The address of the admin port. Beyond this machine, everyone who reaches it can read the
    metrics (docs/security.md)."""
    engine: Annotated[str, AfterValidator(_known_engine)] = DEFAULT_ENGINE
    """The engine that runs the model: llamacpp, vllm, remote, mock, or your own
    (package.module:Class). vllm is for GPUs and must be installed: pip install '.[vllm]'
    (docs/scaling.md). remote lets other servers answer; --upstream chooses it. mock repeats a fixed
    text; it is for client developers and tests."""
    upstream: Annotated[list[str], NoDecode] = []
    """The URL of a server that answers for Penstock: vLLM, SGLang, llama.cpp's server, Penstock,
    Ollama, or any other server with OpenAI's API (docs/upstreams.md); may be repeated. Tables
    [[engine.remote.upstreams]] in penstock.toml also take a weight, a key, a CA and a model."""
    upstream_key: str = Field(default="", repr=False)
    """The key that the servers of --upstream ask for. Set PENSTOCK_UPSTREAM_KEY instead of the flag
    if other users of this machine must not see it."""
    processes: Annotated[int, Field(ge=1, le=1024)] = 1
    """The number of server processes that share the address, each with its own engine and its part
    of the processor's cores or of the GPUs (docs/scaling.md). --slots and --context are for each of
    them; --max-queue, --max-connections, --retain-bytes, --retain-responses-bytes and
    --memory-limit are divided among them."""
    slots: Annotated[int, Field(ge=0, le=4096)] = 0
    """The number of requests that run at once; further requests wait in the queue. 0 means the
    engine's own number: 8 for llamacpp and vllm, the sum of all upstreams for remote, no bound for
    mock."""
    context: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    """The context of each request in tokens, prompt and answer together. 0 means the model's own.
    llamacpp then lowers it to fit the memory of all slots, to no less than 4,096; mock does not
    use it."""
    max_queue: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """The number of requests that may wait in the queue; further requests are refused at once
    (429)."""
    max_timeout: Annotated[float, Field(ge=0, le=604_800)] = 3600.0
    """The number of seconds that a request may take from its admission to its end, including its
    time in the queue. A request may set a shorter timeout. 0 means no limit."""
    engine_arg: Annotated[list[str], NoDecode] = []
    """A parameter of the engine, as name=value; may be repeated. llamacpp takes the parameters of
    llama.cpp: n_ctx=8192, n_threads=4, n_gpu_layers=99, n_batch=512...
    vllm takes the engine arguments of vLLM: dtype=bfloat16, max_model_len=8192,
    tensor_parallel_size=2...
    In penstock.toml, write them in the table [engine.llamacpp] or [engine.vllm]."""
    pace: Annotated[float, Field(ge=0, le=1_000_000)] = 0.0
    """The tokens per second that each request gets at most: faster tokens are held back, so that
    you can watch, stop and resume the stream of a small model. 0 holds nothing back. [default: 30
    for the built-in model, else 0]"""
    demo: bool = False
    """Show the stage on the page: buttons that cut the page's connection, kill or freeze the
    engine, or read slowly, so that you can see what the server does then. Only for a server without
    keys that listens on this machine alone. [default: on for the built-in model, else off]"""
    mock_interval: Annotated[float, Field(ge=0, le=3600)] = 0.3
    """The number of seconds between two tokens of the mock engine."""
    api_key: Annotated[list[str], NoDecode] = Field(default=[], repr=False)
    """A key that clients must send (Authorization: Bearer ...); may be repeated. Without a key,
    everyone who can reach the server may use it. Set PENSTOCK_API_KEY instead of the flag if other
    users of this machine must not see the key."""
    admin_key: Annotated[list[str], NoDecode] = Field(default=[], repr=False)
    """A key like --api-key that may also read /metrics, and read and end other clients' streams;
    may be repeated."""
    keys: str = ""
    """A file of named keys with limits for each key (see penstock key). The server reads it again
    on SIGHUP."""
    tls_cert: str = ""
    """A PEM file with the server's certificate and its chain. With it, the server speaks HTTPS and
    HTTP/2. The server reads the file again when it changes."""
    tls_key: str = ""
    """A PEM file with the private key of the certificate."""
    insecure: bool = False
    """Allow the server to listen beyond this machine without a key."""
    allow_host: Annotated[list[str], NoDecode] = []
    """A host name that requests may use, in addition to this machine's own names; may be repeated.
    Set it for a proxy on this machine that forwards the Host header of its clients."""
    trusted_proxy: Annotated[list[str], NoDecode] = []
    """The address or network of a proxy that names its clients (10.0.0.0/8); may be repeated. The
    server then takes a client's address from Forwarded, X-Forwarded-For or the PROXY protocol."""
    cors_origin: Annotated[list[Origin], NoDecode] = []
    """A web origin whose pages may call this server (https://example.org); may be repeated.
    null is a page opened from a file, * is every page."""
    strict: bool = False
    """Refuse a request with a field that is unknown, has no effect, or does not fit the context.
    Otherwise such fields are left out and named in the header X-Penstock-Ignored. Use it to test
    a client."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """The largest request body, in bytes."""
    body_timeout: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """The number of seconds within which the body of a request must arrive."""
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """The number of connections that may be open at once. One address may have at most
    seven eighths of them."""
    keepalive_timeout: Annotated[float, Field(gt=0, le=86_400)] = 75.0
    """The number of seconds that an idle connection stays open for its client's next request. (With
    HTTP/1.1 over TLS, it stays open for at most 10 seconds.)"""
    drain_timeout: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """The number of seconds that running streams have to end when the server stops."""
    drain_grace: Annotated[float, Field(ge=0, le=3600)] = 0.0
    """The number of seconds that a stopping server goes on as before, but is not ready: the time
    that load balancers need to notice it."""
    linger: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """The number of seconds that a resumable stream goes on without a reader."""
    retain: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """The number of seconds that a resumable stream stays readable after its end."""
    retain_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    """The memory for all ended streams that stay readable, in bytes. The key (without keys: the
    address) that keeps most loses its oldest stream first."""
    log: str = "memory"
    """Where the logs of resumable streams are kept: memory, a folder (for the servers of one
    machine), or redis://host:port/db (Redis or Valkey, for many machines; rediss:// with TLS). With
    a folder or Redis, streams outlive the server: a restarted server or another replica continues
    them (docs/stores.md)."""
    log_sync: bool = False
    """With a folder of logs: let each write wait for the disk. Then a power loss loses nothing that
    was sent. Without this flag, it may lose the last moment of a stream."""
    log_username: str = ""
    """The user name for Redis, if it needs one."""
    log_password: str = Field(default="", repr=False)
    """The password for Redis. Set PENSTOCK_LOG_PASSWORD instead of the flag if other users of this
    machine must not see it."""
    log_timeout: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """The number of seconds that streams wait for a store of logs that does not answer. After that
    their connections are cut, and another replica may continue them."""
    retain_responses: Annotated[float, Field(ge=0, le=2_592_000)] = 86_400.0
    """The number of seconds that a response of `/v1/responses` is stored after its end."""
    retain_responses_bytes: Annotated[int, Field(ge=0)] = 64 * 1024 * 1024
    """The memory for all stored responses, in bytes. The owner with the most bytes loses its oldest
    response first."""
    memory_limit: Annotated[str, AfterValidator(_checked_size)] = ""
    """The memory that the server's process may use, in bytes, or with a unit: 512M, 2G (K, M and G
    are powers of 1024). Near it, the server refuses new requests, then drops what is cheapest to
    lose (docs/operations.md). The engine's own process does not count. [default: a quarter of the
    memory of the machine or of its cgroup]"""
    heartbeat: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """The number of seconds of silence after which a stream sends a comment, so that no proxy
    closes the connection as idle."""
    stall_timeout: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """The number of seconds that sending may wait for a client that does not read. After that the
    client is dropped."""
    engine_timeout: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """The number of seconds that an engine may give no sign of life. After that it counts as hung
    and is restarted. The server asks for a sign ten times in this time; an engine answers between
    two steps. (A step of llama.cpp is at most a batch of a long prompt, n_batch tokens.) [default:
    10 for the built-in model, else 300]"""
    engine_restart_timeout: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """The number of seconds that running streams wait for the restart of an engine that died.
    After that they end with an error."""
    ollama: bool = False
    """Also listen on port 11434, where Ollama's clients look for a server, if the port is free."""
    http2: bool = False
    """Also speak HTTP/2 without TLS, if a client begins its connection with HTTP/2 (as proxies
    can)."""
    log_format: LogFormat = "text"
    """The format of the log on standard error: text, or json with one object per line."""
    log_prompts: bool = False
    """Include prompts in the log. Prompts can contain private data."""
    engine_tables: dict[str, dict[str, Any]] = Field(default={}, exclude=True)

    @property
    def served_name(self) -> str:
        """The name under which the model is served."""
        return self.served_names[0]

    @property
    def served_names(self) -> tuple[str, ...]:
        """The names under which the model is served: its own, then its aliases."""
        given = dict.fromkeys(each.strip() for each in self.model_name.split(","))
        return tuple(filter(None, given)) or (self._derived_name(),)

    def _derived_name(self) -> str:
        """Return the name that tells which model is served."""
        entry = entry_of(self.engine)
        has_model = entry.uses_model == "always" or (
            entry.uses_model == "optional" and "model" in self.model_fields_set
        )
        if not has_model:
            return entry.name
        name, _, _ = self.model.partition(":")
        return Path(name).name.removesuffix(".gguf")

    @property
    def pace_chosen(self) -> float:
        """The pace in tokens per second: the given one, or the model's."""
        if "pace" in self.model_fields_set:
            return self.pace
        return BUILT_IN_PACE if self.is_built_in else 0.0

    @property
    def engine_timeout_chosen(self) -> float:
        """The longest silence of an engine in seconds: the given one, or the model's."""
        if "engine_timeout" in self.model_fields_set or not self.is_built_in:
            return self.engine_timeout
        return BUILT_IN_ENGINE_TIMEOUT_S

    @property
    def is_built_in(self) -> bool:
        """True if the built-in model is served."""
        return self.engine == DEFAULT_ENGINE and self.model == BUILT_IN_MODEL

    @property
    def memory_limit_bytes(self) -> int:
        """The memory limit in bytes; 0 if none is set."""
        return _bytes_of(self.memory_limit) if self.memory_limit else 0

    @property
    def engine_settings(self) -> dict[str, Any]:
        """The settings that engines take, by name (see `EngineEntry.arguments`)."""
        return {
            "model": self.model,
            "model_name": self.served_name,
            "slots": self.slots,
            "slots_asked": self.slots,
            "upstream": self.upstream,
            "upstream_key": self.upstream_key,
            "context": self.context,
            "mock_interval": self.mock_interval,
            "processes": self.processes,
        }

    @property
    def engine_params(self) -> dict[str, Any]:
        """The engine's own parameters, from the file and `engine_arg`.

        Raises StartError if an `engine_arg` has no name or no value.
        """
        params = dict(self.engine_tables.get(self.engine, {}))  # only named engines have one
        for argument in self.engine_arg:
            name, equals, value = argument.partition("=")
            if not equals or not name:
                raise StartError(
                    f"--engine-arg {argument!r} does not have the form name=value.",
                    "For example: --engine-arg n_ctx=8192",
                )
            params[name.strip()] = _toml_value(value.strip())
        return params

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return the sources in order of precedence: flags, variables, the file."""
        return init_settings, env_settings, ConfigFile(settings_cls)


def load_settings(**flags: Any) -> Settings:
    """Return the settings from `flags` (of the command line), variables and the file.

    Raises StartError if a setting is unknown or invalid.
    """
    _refuse_unknown_variables()
    for name, field in Settings.model_fields.items():
        variable = os.environ.get(ENV_PREFIX + name.upper())
        if isinstance(field.default, list) and variable is not None and name not in flags:
            # Lists in variables are separated by commas.
            flags[name] = [part.strip() for part in variable.split(",") if part.strip()]
    try:
        settings = Settings(**flags)
        if settings.upstream and "engine" not in settings.model_fields_set:
            settings = settings.model_copy(update={"engine": REMOTE_ENGINE})
        return settings
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0]) if first["loc"] else "settings"
        if first["type"] == "extra_forbidden":
            raise StartError(f"There is no setting {name!r}.", _nearest(name)) from None
        description = " ".join((Settings.model_fields[name].description or "").split())
        reason = reason_from_pydantic(first["msg"])
        raise StartError(
            f"The setting {name!r} is not valid: {reason}.", f"{name}: {description}"
        ) from None


def _refuse_unknown_variables() -> None:
    known = {ENV_PREFIX + name.upper() for name in _names()}
    known |= {
        ENV_PREFIX + name
        for name in (
            "CONFIG",
            "URL",
            "CHROMIUM",
            "REQUIRE_BROWSER",
            "REQUIRE_FOREIGN",
            "REQUIRE_MODEL",
            "REQUIRE_NAMESPACES",
            "REQUIRE_NPM",
            "REQUIRE_PROMETHEUS",
            "REQUIRE_PROXIES",
            "REQUIRE_REDIS",
            "REQUIRE_STRACE",
            "REQUIRE_SYSTEMD",
        )
    }
    for variable in os.environ:
        if variable.startswith(ENV_PREFIX) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "See `penstock serve --help`."
            raise StartError(f"Penstock has no variable {variable}.", hint)


def _names() -> list[str]:
    """Return the names of the settings that a user can set."""
    return [name for name, field in Settings.model_fields.items() if not field.exclude]


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, _names(), n=1, cutoff=0.7)
    return f"Did you mean {near[0]}?" if near else "See `penstock serve --help`."


def _toml_value(text: str) -> Any:
    """Parse a value: `8` is a number, `true` a boolean, `abc` and `"8"` are strings."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

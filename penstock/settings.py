"""Every setting once: its name, unit, default and what it does.

From this one model come the flags of `penstock serve`, the `PENSTOCK_*` variables, the keys of
`penstock.toml` and their documentation. A flag wins over a variable, a variable over the file.
"""

import difflib
import os
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

from penstock.engine.catalog import BUILT_IN_MODEL, DEFAULT_ENGINE, ENGINES, entry_of, is_engine
from penstock.errors import StartError, reason_from_pydantic

ENV_PREFIX = "PENSTOCK_"
CONFIG_FILE = "penstock.toml"

LogFormat = Literal["text", "json"]
# As a browser sends it: no path, not even a slash.
Origin = Annotated[str, Field(pattern=r"^(\*|null|[a-z][a-z0-9+.-]*://[^/\s]+)$")]


def _known_engine(name: str) -> str:
    if is_engine(name):
        return name
    known = ", ".join(repr(each) for each in ENGINES)
    raise ValueError(f"there are {known}, or one of your own as 'package.module:Class'")


class Settings(BaseSettings):
    """How to serve."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, extra="forbid", frozen=True, use_attribute_docstrings=True
    )

    model: str = BUILT_IN_MODEL
    """The model: a GGUF file (./x.gguf), a repository on the Hugging Face hub
    (owner/repo, or owner/repo:Q4_K_M for one of its files), or rill, the built-in one.
    For vllm: a folder with a Hugging Face checkpoint, or owner/repo."""
    model_name: str = ""
    """The name under which the model is served. [default: from the model]"""
    host: str = "127.0.0.1"
    """The address to listen on."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    """The port to listen on; 0 takes a free one."""
    engine: Annotated[str, AfterValidator(_known_engine)] = DEFAULT_ENGINE
    """What runs the model: llamacpp, vllm, mock, or one of your own (package.module:Class).
    vllm is for GPUs and is installed with it: pip install '.[vllm]' (docs/scaling.md). mock says
    a fixed text and is for client developers and tests."""
    slots: Annotated[int, Field(ge=0, le=4096)] = 0
    """Requests that run at once; further ones wait in line. 0 is the engine's own number: 8 for
    llamacpp and vllm, no bound for the mock."""
    max_queue: Annotated[int, Field(ge=0, le=1_000_000)] = 1024
    """Requests that may wait in line; further ones are refused (429) at once."""
    max_timeout: Annotated[float, Field(ge=0, le=604_800)] = 3600.0
    """Seconds that a request may take from its admission to its end, waiting included, if it does
    not ask for less; 0 is no limit."""
    engine_arg: Annotated[list[str], NoDecode] = []
    """One of the engine's own parameters, as name=value; may be repeated. llamacpp takes
    llama.cpp's: n_ctx=8192, n_threads=4, n_gpu_layers=99, n_batch=512...
    vllm takes vLLM's: dtype=bfloat16, max_model_len=8192, tensor_parallel_size=2...
    In penstock.toml they stand in the table [engine.llamacpp] or [engine.vllm]."""
    mock_interval: Annotated[float, Field(ge=0, le=3600)] = 0.3
    """Seconds between two tokens of the mock engine."""
    api_key: Annotated[list[str], NoDecode] = Field(default=[], repr=False)
    """A key that requests must have (Authorization: Bearer ...); may be repeated. Without any key
    everybody who reaches the server may use it. Better in PENSTOCK_API_KEY: others on this machine
    can read flags."""
    admin_key: Annotated[list[str], NoDecode] = Field(default=[], repr=False)
    """The same, of one who may also read /metrics, and read and end other people's streams."""
    keys: str = ""
    """A file of named keys with limits for each (see penstock key); read again on SIGHUP."""
    tls_cert: str = ""
    """A PEM file with the server's certificate and those that it is signed with: then it speaks
    https, and HTTP/2. Read again when it changes."""
    tls_key: str = ""
    """The PEM file with the certificate's key."""
    insecure: bool = False
    """Listen beyond this machine without a key."""
    allow_host: Annotated[list[str], NoDecode] = []
    """A name by which the server may be asked for, beside this machine's own; may be repeated. For
    a proxy on this machine that passes on the Host it was asked for."""
    cors_origin: Annotated[list[Origin], NoDecode] = []
    """A web origin whose pages may call this server (https://example.org); may be repeated.
    null is a page opened from a file, * is every page."""
    max_body_bytes: Annotated[int, Field(ge=1024)] = 4 * 1024 * 1024
    """Largest body of a request, in bytes."""
    body_timeout: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """Seconds in which the body of a request must arrive."""
    max_connections: Annotated[int, Field(ge=1, le=1_000_000)] = 8192
    """Connections that may be open at once."""
    drain_timeout: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    """Seconds that running streams are given to end when the server is told to stop."""
    linger: Annotated[float, Field(ge=0, le=86_400)] = 60.0
    """Seconds that a resumable stream goes on while nobody reads it."""
    retain: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """Seconds that a resumable stream can still be read after its end."""
    retain_bytes: Annotated[int, Field(ge=0)] = 256 * 1024 * 1024
    """Memory for all streams that are kept after their end, in bytes; the oldest goes first."""
    heartbeat: Annotated[float, Field(gt=0, le=3600)] = 15.0
    """Seconds of silence after which a stream sends a comment, so that nothing on the way takes
    it for dead."""
    stall_timeout: Annotated[float, Field(gt=0, le=86_400)] = 30.0
    """Seconds that sending may wait for a client that does not read, before it is dropped."""
    engine_timeout: Annotated[float, Field(gt=0, le=86_400)] = 300.0
    """Seconds without a sign from an engine that has requests, after which it is taken for hung
    and restarted. (llama.cpp gives one after each batch of a long prompt, n_batch tokens.)"""
    engine_restart_timeout: Annotated[float, Field(ge=0, le=86_400)] = 300.0
    """Seconds that running streams wait for an engine that died, before they end with an error."""
    http2: bool = False
    """Speak HTTP/2 as well, to clients that begin with it (as proxies can)."""
    log_format: LogFormat = "text"
    """How the log, on standard error, is written: text, or json with an object on each line."""
    log_prompts: bool = False
    """Put into the log what was asked, as well. Prompts can hold anything people should not see."""
    engine_tables: dict[str, dict[str, Any]] = Field(default={}, exclude=True)

    @property
    def served_name(self) -> str:
        """The name under which the model is served."""
        if self.model_name:
            return self.model_name
        entry = entry_of(self.engine)
        has_model = entry.uses_model == "always" or (
            entry.uses_model == "optional" and "model" in self.model_fields_set
        )
        if not has_model:
            return entry.name
        name, _, _ = self.model.partition(":")
        return Path(name).name.removesuffix(".gguf")

    @property
    def engine_settings(self) -> dict[str, Any]:
        """The settings that engines take, by name (see `EngineEntry.arguments`)."""
        return {
            "model": self.model,
            "model_name": self.served_name,
            "slots": self.slots,
            "mock_interval": self.mock_interval,
        }

    @property
    def engine_params(self) -> dict[str, Any]:
        """The chosen engine's own parameters, from the file and the flags."""
        params = dict(self.engine_tables.get(self.engine, {}))  # one's own has no table
        for argument in self.engine_arg:
            name, equals, value = argument.partition("=")
            if not equals or not name:
                raise StartError(
                    f"--engine-arg {argument!r} is not of the form name=value.",
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
        """Flags, then variables, then the file."""
        return init_settings, env_settings, _File(settings_cls)


class _File(PydanticBaseSettingsSource):
    """`penstock.toml`, in this directory or where PENSTOCK_CONFIG says."""

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # pydantic-settings asks for it, __call__ does without

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get(ENV_PREFIX + "CONFIG")
        path = Path(named or CONFIG_FILE)
        if not named and not path.exists():
            return {}
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StartError(
                f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.",
                f"It is a file of settings in TOML; {ENV_PREFIX}CONFIG names another one. Beside a"
                " table [engine.NAME] the engine itself is named in [engine], as name.",
            ) from None
        if "engine_tables" in values:  # our own word for what is written [engine.llamacpp]
            raise StartError("There is no setting 'engine_tables'.", _nearest("engine"))
        table = values.get("engine")
        if isinstance(table, dict):
            del values["engine"]
            if "name" in table:
                values["engine"] = table.pop("name")
            values["engine_tables"] = _checked_tables(table)
        return values


def _checked_tables(tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What stands under [engine]: a table for each engine. Raises StartError."""
    for name, table in tables.items():
        if name not in ENGINES:
            near = difflib.get_close_matches(name, ENGINES, n=1)
            hint = f"Did you mean {near[0]}?" if near else "There are: " + ", ".join(ENGINES)
            raise StartError(f"There is no engine {name!r} to have a table [engine.{name}].", hint)
        if not isinstance(table, dict):
            raise StartError(f"engine.{name} is not a table.", f"Write [engine.{name}] above it.")
    return tables


def load_settings(**flags: Any) -> Settings:
    """The settings in force; `flags` are those given on the command line. Raises StartError."""
    _refuse_unknown_variables()
    for name in (
        "engine_arg",
        "cors_origin",
        "api_key",
        "admin_key",
        "allow_host",
    ):  # a list in a variable: comma-separated
        variable = os.environ.get(ENV_PREFIX + name.upper())
        if variable is not None and name not in flags:
            flags[name] = [part.strip() for part in variable.split(",") if part.strip()]
    try:
        return Settings(**flags)
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
        for name in ("CONFIG", "URL", "CHROMIUM", "REQUIRE_BROWSER", "REQUIRE_PROMETHEUS")
    }
    for variable in os.environ:
        if variable.startswith(ENV_PREFIX) and variable not in known:
            near = difflib.get_close_matches(variable, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "See `penstock serve --help`."
            raise StartError(f"There is no variable {variable}.", hint)


def _names() -> list[str]:
    """The settings that can be given."""
    return [name for name, field in Settings.model_fields.items() if not field.exclude]


def _nearest(name: str) -> str:
    near = difflib.get_close_matches(name, _names(), n=1, cutoff=0.7)
    return f"Did you mean {near[0]}?" if near else "See `penstock serve --help`."


def _toml_value(text: str) -> Any:
    """`8` is a number, `true` a truth value, `abc` and `"8"` strings."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text

"""The pages in docs/reference, generated from the code.

    python -m tools.reference            write the pages
    python -m tools.reference --check    exit with 1 if a page does not match the code

In: the settings, the errors, the metrics and the client's public names. Out: Markdown. The output
depends only on the code, so tests/docs/test_reference.py can compare it with the files.
"""

import ast
import inspect
import itertools
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, is_typeddict

from pydantic.fields import FieldInfo

import penstock.client
from penstock.api.openai.errors import error_response
from penstock.errors import PROBLEMS, Problem
from penstock.events import Timings, Usage
from penstock.observe.metrics import METRICS
from penstock.settings import ENV_PREFIX, Settings

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
COMMAND = "python -m tools.reference"
NOTE = f"<!-- Generated from the code by `{COMMAND}`. Do not edit. -->"


# --- settings.md


def settings_page() -> str:
    """Return settings.md: each setting with its flag, variable, key, type, default and meaning."""
    intro = """\
You can give each setting as a flag of `penstock serve`, as an environment variable or as a key in
`penstock.toml`. A flag overrides a variable, and a variable overrides the file. The server reads
`penstock.toml` from the current directory; `PENSTOCK_CONFIG` names another file. If the file has a
table `[engine.NAME]`, choose the engine with `name` in the table `[engine]`."""
    parts = [NOTE, "# Settings", intro]
    for name, field in Settings.model_fields.items():
        if field.exclude:
            continue
        meaning, _, default = _one_line(field.description or "").partition(" [default: ")
        parts += [
            f"## `--{name.replace('_', '-')}`",
            meaning,
            f"Variable: `{ENV_PREFIX}{name.upper()}`. Key: `{name}`. Type: {_type_of(field)}. "
            f"Default: {default.rstrip(']') or _default_of(field)}.",
        ]
    return "\n\n".join(parts) + "\n"


def _type_of(field: FieldInfo) -> str:
    """Return the type of a setting and its bounds, in words."""
    kind = field.annotation
    if get_origin(kind) is list:
        return "list of strings (repeat the flag, or separate the variable's values with commas)"
    if get_origin(kind) is Literal:
        return " or ".join(f"`{value}`" for value in get_args(kind))
    words = {bool: "`true` or `false`", int: "integer", float: "number", str: "string"}
    bounds = {"ge": "at least", "gt": "above", "le": "at most"}
    limits = [
        f"{phrase} {getattr(limit, bound):,}"
        for limit in field.metadata
        for bound, phrase in bounds.items()
        if hasattr(limit, bound)
    ]
    return ", ".join([words[kind], *limits])  # type: ignore[index] # one of these types


def _default_of(field: FieldInfo) -> str:
    """Return the default of a setting as you write it in penstock.toml."""
    default = field.get_default(call_default_factory=True)
    if default in ("", []):
        return "none"
    return f"`{str(default).lower() if isinstance(default, bool) else default}`"


# --- errors.md


def errors_page() -> str:
    """Return errors.md: the table of error codes."""
    intro = """\
Every error has a code. The response, the log and the metrics use the same code. If a stream has
already begun, its terminal event reports the error, and the HTTP status stays 200. If *retry* is
yes, you can send the same request again, perhaps later; the error says so in `retry_safe`. If the
response has a `Retry-After` header, wait for that number of seconds first.

The routes under `/v1` follow OpenAI's API. The last column gives their status and code if they
differ. Your own engine may report other codes: their status is 500, and you can retry."""
    rows = ["| code | status | retry | when it happens | under `/v1` |", "|---|---|---|---|---|"]
    for code, kind in PROBLEMS.items():
        retry = "yes" if kind.retry_safe else "no"
        rows.append(f"| `{code}` | {kind.status} | {retry} | {kind.meaning} | {_openai(code)} |")
    return "\n\n".join([NOTE, "# Error codes", intro, "\n".join(rows)]) + "\n"


def _openai(code: str) -> str:
    """Return the status and the code that OpenAI's API answers for `code`, if they differ."""
    response = error_response(Problem(code, ""))
    openai_code = json.loads(bytes(response.body))["error"]["code"]
    changes = [f"{response.status_code}"] if response.status_code != PROBLEMS[code].status else []
    return ", ".join(changes + ([f"`{openai_code}`"] if openai_code != code else []))


# --- metrics.md


def metrics_page() -> str:
    """Return metrics.md: the table of metrics."""
    intro = "`GET /metrics` returns these metrics. [Metrics](../metrics.md) says how to read them."
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{metric.name}` | {metric.kind} | {labels} | {metric.help} |")
    return "\n\n".join([NOTE, "# Table of metrics", intro, "\n".join(rows)]) + "\n"


# --- client.md

# `Client` makes the streams, and you get errors from an `except`: their constructors are internal.
WITHOUT_CONSTRUCTOR = (Exception, penstock.client.Stream, penstock.client.AsyncStream, dict)


def client_page() -> str:
    """Return client.md: the public names of `penstock.client` with signatures and docstrings."""
    public = [getattr(penstock.client, name) for name in penstock.client.__all__]
    public += [Usage, Timings]
    public.sort(key=lambda cls: issubclass(cls, Exception))  # errors come last
    intro = (
        "Import these names from `penstock.client`, `Usage` and `Timings` from `penstock.events`."
    )
    parts = [NOTE, "# Python client", intro]
    for cls in public:
        parts += [f"## `{cls.__name__}`", *_class_parts(cls)]
    return "\n\n".join(parts) + "\n"


def _class_parts(cls: type) -> Iterator[str]:
    """Yield the paragraphs about a class: signature, docstring, fields, properties, methods."""
    if issubclass(cls, WITHOUT_CONSTRUCTOR):
        base = "TypedDict" if is_typeddict(cls) else cls.__bases__[0].__name__
        is_public = base in {"TypedDict", "Exception", *penstock.client.__all__}
        yield _code(f"class {cls.__name__}({base})" if is_public else f"class {cls.__name__}")
    else:
        yield _code(cls.__name__ + _signature(cls).removesuffix(" -> None"))
    yield inspect.getdoc(cls) or ""
    yield from _documented_fields(cls)
    for owner in reversed(cls.__mro__):
        for name, member in vars(owner).items():
            if name.startswith("_") or not owner.__module__.startswith("penstock."):
                continue
            if isinstance(member, property):
                header = f"{name}: {_short(inspect.signature(member.fget).return_annotation)}"  # type: ignore[arg-type] # it has a getter
            elif inspect.isfunction(member):
                header = "async def " if inspect.iscoroutinefunction(member) else "def "
                header += name + _signature(member)
            else:
                continue
            yield f"### `{cls.__name__}.{name}`"
            yield _code(header)
            yield inspect.getdoc(member) or ""


def _documented_fields(cls: type) -> Iterator[str]:
    """Yield a list of the fields that have a docstring in the source of the class."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
    items = []
    for field, doc in itertools.pairwise(node.body):  # type: ignore[attr-defined] # a class has a body
        match field, doc:
            case ast.AnnAssign(), ast.Expr(value=ast.Constant(value=str(text))):
                items.append(f"- `{ast.unparse(field)}`: {_one_line(text)}")
    if items:
        yield "\n".join(items)


def _signature(function: Callable[..., Any]) -> str:
    """Return a signature without `self` and without module names."""
    text = re.sub(r"^\(self(, )?", "(", str(inspect.signature(function)))
    return _short(re.sub(r"\*<class '([\w.]+)'>", r"Unpack[\1]", text))


def _short(annotation: object) -> str:
    """Return an annotation as text, without module names."""
    text = annotation if isinstance(annotation, str) else inspect.formatannotation(annotation)
    return re.sub(r"\b(?:[a-z_]\w*\.)+(?=[A-Z])", "", text)


def _code(text: str) -> str:
    """Return a code block. A header that is too long gets one line for each parameter."""
    if len(text) > 88:
        name, _, rest = text.partition("(")
        parameters, _, returned = rest.rpartition(")")
        lines = re.split(r", (?![^\[(]*[\])])", parameters)  # not at commas within brackets
        text = "\n".join([f"{name}(", *(f"    {line}," for line in lines), f"){returned}"])
    return f"```python\n{text}\n```"


# --- all pages

PAGES: dict[str, Callable[[], str]] = {
    "settings.md": settings_page,
    "errors.md": errors_page,
    "metrics.md": metrics_page,
    "client.md": client_page,
}


def _one_line(text: str) -> str:
    return " ".join(text.split())


def main(arguments: list[str]) -> int:
    """Write the pages, or with `--check` name those that are not up to date. Return the status."""
    if arguments not in ([], ["--check"]):
        print(__doc__)
        return 2
    stale = []
    for name, page in PAGES.items():
        path, text = FOLDER / name, page()
        if not arguments:
            path.write_text(text, encoding="utf-8")
        elif not path.exists() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    for name in stale:
        print(f"docs/reference/{name} does not match the code. Run: {COMMAND}")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""The configuration file, `penstock.toml`, as a source of settings.

In: the file. Out: its values by the names of the settings; the tables `[engine.NAME]` together are
the setting `engine_tables`. Not known here: which settings there are.
"""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic_settings import PydanticBaseSettingsSource

from penstock.engine.catalog import ENGINES
from penstock.errors import StartError

CONFIG_FILE = "penstock.toml"
CONFIG_VARIABLE = "PENSTOCK_CONFIG"


class ConfigFile(PydanticBaseSettingsSource):
    """The file `penstock.toml` in this directory, or the file that PENSTOCK_CONFIG names.

    Calling it raises StartError if the file cannot be read, or if a table of an engine is invalid.
    """

    def get_field_value(self, field: object, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # abstract in pydantic-settings, but unused

    def __call__(self) -> dict[str, Any]:
        named = os.environ.get(CONFIG_VARIABLE)
        path = Path(named or CONFIG_FILE)
        if not named and not path.exists():
            return {}
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise StartError(
                f"{path} cannot be read: {getattr(error, 'strerror', None) or error}.",
                f"It must be TOML; {CONFIG_VARIABLE} names another file. If it has a table"
                ' [engine.NAME], choose the engine with name = "NAME" in the table [engine].',
            ) from None
        if "engine_tables" in values:
            raise StartError("There is no setting 'engine_tables'.", "Did you mean engine?")
        table = values.get("engine")
        if isinstance(table, dict):
            del values["engine"]
            if "name" in table:
                values["engine"] = table.pop("name")
            values["engine_tables"] = _checked_tables(table)
        return values


def _checked_tables(tables: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the tables under [engine]. Raises StartError if an engine or a table is invalid."""
    for name, table in tables.items():
        if name not in ENGINES:
            near = difflib.get_close_matches(name, ENGINES, n=1)
            hint = f"Did you mean {near[0]}?" if near else "The engines are " + ", ".join(ENGINES)
            raise StartError(f"There is no engine {name!r} for the table [engine.{name}].", hint)
        if not isinstance(table, dict):
            hint = f"Write its parameters below a line [engine.{name}]."
            raise StartError(f"engine.{name} is not a table.", hint)
    return tables

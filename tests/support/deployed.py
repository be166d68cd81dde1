"""The commands and variables in the files of `deploy/`, read as Penstock itself would read them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from penstock.settings import ENV_PREFIX, Settings, load_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
_VARIABLE = re.compile(rf"\b{ENV_PREFIX}([A-Z0-9_]+)\b")


def settings_given(arguments: Sequence[str]) -> Settings:
    """Return the settings that `penstock serve` would have with these flags.

    Raises KeyError for an unknown flag, and StartError for a bad value.
    """
    flags: dict[str, Any] = {}
    words = [word for each in arguments for word in each.split("=", 1)]
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        default = Settings.model_fields[name].get_default(call_default_factory=True)
        if isinstance(default, bool):
            flags[name] = True
        elif isinstance(default, list):
            flags.setdefault(name, []).append(words.pop(0))
        else:
            flags[name] = words.pop(0)
    return load_settings(**flags)


def unknown_variables(text: str) -> set[str]:
    """Return the settings that a text names as variables, and that do not exist."""
    known = {name.upper() for name in Settings.model_fields} | {"CONFIG"}
    return set(_VARIABLE.findall(text)) - known

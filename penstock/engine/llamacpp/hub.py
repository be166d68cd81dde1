"""Finds or downloads the GGUF file that `--model` names.

In: a path, `owner/repo[:quant]` on the Hugging Face hub, or the built-in model's name. Out: the
path of the file, which is downloaded with a progress bar if it is not on this machine.
"""

import glob
import re
from importlib import resources
from pathlib import Path

from penstock.engine.catalog import BUILT_IN_MODEL
from penstock.errors import StartError

DEFAULT_QUANTS = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0", "F16", "BF16", "F32")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def find_model(model: str) -> Path:
    """Return the path of the GGUF file that `model` names, downloaded if necessary.

    Raises StartError with the next step if there is no such file.
    """
    if model == BUILT_IN_MODEL:
        return Path(str(resources.files("penstock") / "model" / f"{BUILT_IN_MODEL}.gguf"))
    try:
        path = Path(model).expanduser()
        if path.is_file():
            return _checked(path)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "its user has no home directory"
        raise StartError(
            f"The model file {model[:200]} cannot be read: {reason}.",
            "Is the path right, and may this user read it?",
        ) from None
    if path.suffix == ".gguf" or path.exists() or model.startswith((".", "/", "~")):
        raise StartError(
            f"There is no model file {model}.",
            "Give the path of a GGUF file, owner/repo on the Hugging Face hub, or rill.",
        )
    if _REPOSITORY.fullmatch(model):
        return download(model)
    raise StartError(
        f"There is no model {model!r}.",
        f"The built-in model is {BUILT_IN_MODEL}; name another by its path or as owner/repo.",
    )


def _checked(path: Path) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise StartError(
                f"{path} is not a GGUF file.",
                "llama.cpp's convert_hf_to_gguf.py converts a Hugging Face checkpoint to GGUF.",
            )
    return path


def size_of(model: str) -> int:
    """Return the size in bytes of the GGUF file `model`, with all its parts."""
    path = Path(model)
    part = _PART.search(path.name)
    if part is None:
        return path.stat().st_size
    stem = glob.escape(path.name[: part.start()])
    return sum(each.stat().st_size for each in path.parent.glob(f"{stem}-*-of-{part[2]}.gguf"))


def download(name: str) -> Path:
    """Return the path of `owner/repo[:quant]` in the hub's cache, downloaded if necessary.

    Raises StartError if the hub has no such file or cannot be reached.
    """
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import RepositoryNotFoundError

    repository, _, quant = name.partition(":")
    try:
        files = HfApi().list_repo_files(repository)
        parts = choose_files(files, quant)
        paths = [Path(hf_hub_download(repository, part)) for part in parts]
    except RepositoryNotFoundError:
        raise StartError(
            f"The hub has no public repository {repository}.",
            "Check the spelling; for a private repository set HF_TOKEN.",
        ) from None
    except StartError:
        raise
    except Exception as error:  # its type depends on huggingface_hub's version
        raise StartError(
            f"The model {name} could not be downloaded ({type(error).__name__}).",
            "Check the connection to huggingface.co, or give the path of a file.",
        ) from None
    return paths[0]


def choose_files(files: list[str], quant: str) -> list[str]:
    """Return the parts of the GGUF file for `quant`, or for the first of `DEFAULT_QUANTS`.

    Raises StartError if no file matches, or if the choice is not clear.
    """
    ggufs = sorted(f for f in files if f.endswith(".gguf") and "mmproj" not in f.lower())
    if not ggufs:
        raise StartError(
            "The repository contains no GGUF file.",
            "Look for a repository whose name ends with -GGUF.",
        )
    firsts = [f for f in ggufs if not (part := _PART.search(f)) or part[1] == "00001"]
    for wanted in [quant] if quant else DEFAULT_QUANTS:
        found = [f for f in firsts if _names_quant(f, wanted)]
        if found:
            return _parts(min(found, key=len), ggufs)
    if not quant and len(firsts) == 1:
        return _parts(firsts[0], ggufs)
    raise StartError(
        f"The repository has no GGUF file for {quant or 'a usual quantisation'}.",
        "It has: " + ", ".join(firsts[:12]),
    )


def _names_quant(file: str, quant: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", file, re.I) is not None


def _parts(first: str, ggufs: list[str]) -> list[str]:
    part = _PART.search(first)
    if part is None:
        return [first]
    stem = first[: part.start()]
    return [f for f in ggufs if f.startswith(stem) and f.endswith(f"-of-{part[2]}.gguf")]

"""From what `--model` says to a GGUF file on this machine.

In: a path, `owner/repo[:quant]` on the Hugging Face hub, or the built-in model's name. Out: the
file's path, downloaded with a progress bar where it is not here yet.
"""

import re
from importlib import resources
from pathlib import Path

from penstock.engine.catalog import BUILT_IN_MODEL
from penstock.errors import StartError

DEFAULT_QUANTS = ("Q4_K_M", "Q4_0", "Q5_K_M", "Q8_0", "F16", "BF16", "F32")
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+(?::[\w.-]+)?")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


def find_model(model: str) -> Path:
    """The GGUF file that `model` names. Raises StartError with the next step."""
    if model == BUILT_IN_MODEL:
        return Path(str(resources.files("penstock") / "model" / f"{BUILT_IN_MODEL}.gguf"))
    try:
        path = Path(model).expanduser()
        if path.is_file():
            return _checked(path)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is in nobody's home"
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
        f"The built-in one is {BUILT_IN_MODEL}; others are named by path or as owner/repo.",
    )


def _checked(path: Path) -> Path:
    with path.open("rb") as file:
        if file.read(4) != b"GGUF":
            raise StartError(
                f"{path} is not a GGUF file.",
                "llama.cpp's convert_hf_to_gguf.py makes one from a Hugging Face checkpoint.",
            )
    return path


def download(name: str) -> Path:
    """The file of `owner/repo[:quant]`, from the hub's cache or downloaded into it."""
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
            "Check its spelling; for a private one set HF_TOKEN.",
        ) from None
    except StartError:
        raise
    except Exception as error:  # which ones depends on the HTTP library of the hub's version
        raise StartError(
            f"The model {name} could not be downloaded ({type(error).__name__}).",
            "Check the connection to huggingface.co, or give the path of a file.",
        ) from None
    return paths[0]


def choose_files(files: list[str], quant: str) -> list[str]:
    """The GGUF file that `quant` names (Q4_K_M or the like, by default), with all its parts.

    Raises StartError where there is none, or where it is not clear which is meant.
    """
    ggufs = sorted(f for f in files if f.endswith(".gguf") and "mmproj" not in f.lower())
    if not ggufs:
        raise StartError(
            "That repository holds no GGUF file.", "Look for one with -GGUF at the end of its name."
        )
    firsts = [f for f in ggufs if not (part := _PART.search(f)) or part[1] == "00001"]
    for wanted in [quant] if quant else DEFAULT_QUANTS:
        found = [f for f in firsts if _names_quant(f, wanted)]
        if found:
            return _parts(min(found, key=len), ggufs)
    if not quant and len(firsts) == 1:
        return _parts(firsts[0], ggufs)
    raise StartError(
        f"No GGUF file there is named for {quant or 'a usual quantisation'}.",
        "There are: " + ", ".join(firsts[:12]),
    )


def _names_quant(file: str, quant: str) -> bool:
    return re.search(rf"(?<![A-Za-z0-9]){re.escape(quant)}(?![A-Za-z0-9_])", file, re.I) is not None


def _parts(first: str, ggufs: list[str]) -> list[str]:
    part = _PART.search(first)
    if part is None:
        return [first]
    stem = first[: part.start()]
    return [f for f in ggufs if f.startswith(stem) and f.endswith(f"-of-{part[2]}.gguf")]

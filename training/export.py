"""Exports rill: a checkpoint to GGUF, or a GGUF to a Hugging Face folder.

`python -m training.export --help`. Only the export to GGUF needs PyTorch.
"""

import argparse
import sys
from pathlib import Path

from training.gguf_file import Checkpoint, read_gguf, tokenizer_parts, write_gguf
from training.hub_folder import write_hub_folder
from training.shape import BUILD, MODEL


def read_training_checkpoint(folder: Path) -> Checkpoint:
    """Read the checkpoint and the tokenizer that `training.train` wrote into its folder."""
    from training.train import load_model  # here, so that the export from GGUF needs no PyTorch

    model, _ = load_model(folder / "checkpoint.pt")
    tokens, merges = tokenizer_parts(folder / "tokenizer.json")
    weights = {name: weight.numpy() for name, weight in model.state_dict().items()}
    return Checkpoint(model.shape, weights, tokens, merges)


def export_gguf(folder: Path, out: Path) -> None:
    checkpoint = read_training_checkpoint(folder)
    write_gguf(out, checkpoint)
    size = out.stat().st_size / 1e6
    print(f"{out}: {checkpoint.shape.num_parameters:,} parameters, {size:.1f} MB")


def export_hub(model: Path, out: Path) -> None:
    write_hub_folder(out, read_gguf(model))
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.export", description=__doc__.split("\n")[0]
    )
    formats = parser.add_subparsers(dest="format", required=True)
    to_gguf = formats.add_parser("gguf", help="checkpoint to f16 GGUF (needs PyTorch)")
    to_gguf.add_argument(
        "--folder", type=Path, default=BUILD, help="the training folder (default: %(default)s)"
    )
    to_gguf.add_argument(
        "--out", type=Path, default=MODEL, help="the GGUF file (default: %(default)s)"
    )
    to_hub = formats.add_parser("hf", help="GGUF to Hugging Face folder")
    to_hub.add_argument(
        "--model", type=Path, default=MODEL, help="the GGUF file (default: %(default)s)"
    )
    to_hub.add_argument(
        "--out", type=Path, default=BUILD / "hf", help="the folder (default: %(default)s)"
    )
    options = parser.parse_args()
    source = options.folder / "checkpoint.pt" if options.format == "gguf" else options.model
    if not source.exists():
        sys.exit(f"there is no {source}: train the model first (see training/README.md)")
    if options.format == "gguf":
        export_gguf(options.folder, options.out)
    else:
        export_hub(options.model, options.out)


if __name__ == "__main__":
    main()

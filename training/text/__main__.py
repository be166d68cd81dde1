"""Prints samples of the training text: `python -m training.text --help`."""

import argparse
from itertools import islice

from training.text.document import Kind, documents
from training.text.split import Split


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m training.text", description="Print samples of the text that rill learns."
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the texts (default: 1)")
    parser.add_argument("--count", type=int, default=5, help="number of texts (default: 5)")
    parser.add_argument(
        "--kind", choices=[kind.value for kind in Kind], help="only this kind (default: all)"
    )
    parser.add_argument(
        "--split",
        choices=[split.value for split in Split],
        default=Split.TRAIN.value,
        help="the split (default: train)",
    )
    options = parser.parse_args()
    kind = Kind(options.kind) if options.kind else None
    for document in islice(documents(options.seed, Split(options.split), kind=kind), options.count):
        print(f"[{document.kind.value}]\n{document.text}\n")


if __name__ == "__main__":
    main()

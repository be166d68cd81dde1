"""Makes the prompt of a request that fills a gap in a text ("fill in the middle").

In: the text before the gap, what follows it, and other files. Out: a prompt of texts and tokens, in
the order in which models are trained. The texts are never searched for control tokens. Nothing is
cut: a prompt that is too long is refused like every other.

Forms: https://arxiv.org/abs/2409.12186 (files of a repository), and llama-server's `/infill`.
"""

from penstock.engine.llamacpp.vocabulary import GapTokens, Prompt
from penstock.request import Gap

REPOSITORY = "myproject\n"
"""The name of the repository, as llama-server gives it."""
CURRENT_FILE = "filename\n"
"""The name of the file with the gap, as llama-server gives it."""
SNIPPET = "\n\n--- snippet ---\n\n"
"""What begins another file if the model has no token for that, as in llama-server."""
NO_GAPS = "This model can only continue a text: its vocabulary has no tokens that mark a gap."


def prompt_with_gap(tokens: GapTokens, before: str, gap: Gap) -> Prompt:
    """Return the prompt that has the model write what belongs after the text `before`."""
    return [
        "",  # the tokens that begin every text come before everything else
        *_files(tokens, gap),
        *(tokens.before, before),
        *(tokens.after, gap.suffix),
        tokens.gap,
    ]


def _files(tokens: GapTokens, gap: Gap) -> Prompt:
    """Return the other files. A prompt without any begins with the gap's own text."""
    if not gap.files:
        return []
    if tokens.file is None:
        return [part for _, text in gap.files for part in (SNIPPET, text)]
    named = [(f"{name}\n", text) for name, text in gap.files]
    parts: list[str | int] = [] if tokens.repository is None else [tokens.repository, REPOSITORY]
    for name, text in named:
        parts += (tokens.file, name, text)
    return [*parts, tokens.file, CURRENT_FILE]

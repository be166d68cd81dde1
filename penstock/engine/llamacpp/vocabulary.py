"""The model's vocabulary, in this process: texts to token ids and back, by llama.cpp's own code.

In: the path of a GGUF file. Out: the same ids and texts as those of llama.cpp's server, without a
request to it. xllamacpp has no functions for this, but its library contains llama.cpp's C
interface, which can load only the vocabulary of a file. Not known here: requests, templates.

Interface: https://github.com/ggml-org/llama.cpp/blob/master/include/llama.h
"""

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from penstock.errors import StartError
from penstock.request import UnnamedTokens

PIECE_BYTES = 256
# The attributes of tokens that take the white space beside them, when they are found in a text.
STRIPS_LEFT, STRIPS_RIGHT = 1 << 7, 1 << 8
GAP_MARKS = ("pre", "suf", "mid", "rep", "sep")
NO_TOKEN = -1
# Kinds of vocabularies whose tokens contain every byte of a text.
BYTE_FALLBACK, BYTE_PAIRS = 1, 2

Prompt = Sequence[str | int]
"""A prompt as texts and ids of control tokens."""


class GapTokens(NamedTuple):
    """The tokens with which a model was trained to fill gaps ("fill in the middle").

    `before` and `after` begin the texts on the two sides of the gap, and `gap` begins what fills
    it. Some models also have tokens that begin a repository's name and the name of a file.
    """

    before: int
    after: int
    gap: int
    repository: int | None
    file: int | None


class ModelParams(ctypes.Structure):
    """`llama_model_params`, as in the versions of xllamacpp that pyproject.toml allows."""

    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int32),
        ("load_mode", ctypes.c_int32),
        ("lazy_mode", ctypes.c_int32),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        ("vocab_only", ctypes.c_bool),
        ("check_tensors", ctypes.c_bool),
        ("use_extra_bufts", ctypes.c_bool),
        ("no_host", ctypes.c_bool),
        ("no_alloc", ctypes.c_bool),
    )


# What llama.cpp sets first, in the order of the fields; None is a null pointer.
DEFAULTS = (*(None, None), *(-1, 1, -1, 1, 0), *(None,) * 4, *(False, False, True, False, False))


class Vocabulary:
    """The vocabulary of the GGUF file at `path`. Raises StartError if it cannot be loaded.

    All methods may be called in any thread. They release the interpreter's lock while they work.
    """

    def __init__(self, path: str) -> None:
        self._llama = _library()
        params = self._llama.llama_model_default_params()
        if tuple(getattr(params, name) for name, _ in ModelParams._fields_) != DEFAULTS:
            raise StartError(
                "This version of xllamacpp has another C interface than Penstock knows.",
                "Install the version that Penstock's pyproject.toml names.",
            )
        params.vocab_only = True
        self._model = self._llama.llama_model_load_from_file(path.encode(), params)
        if not self._model:
            raise StartError("The model's vocabulary cannot be loaded.", "Is the file complete?")
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self.size: int = self._llama.llama_vocab_n_tokens(self._vocab)
        self.adds_begin: bool = self._llama.llama_vocab_get_add_bos(self._vocab)

    def ids_of(
        self, text: str, *, parse_special: bool = True, add_special: bool = False
    ) -> list[int]:
        """Return the tokens of a text.

        With `parse_special`, the texts of control tokens become these tokens. With `add_special`,
        the tokens that begin and end every text of this model are added.
        """
        utf8 = text.encode("utf-8", "replace")
        room = len(utf8) + 2
        while True:
            ids = (ctypes.c_int32 * room)()
            found: int = self._llama.llama_tokenize(
                self._vocab, utf8, len(utf8), ids, room, add_special, parse_special
            )
            if found >= 0:
                return ids[:found]
            room = -found

    def ids_of_prompt(self, prompt: Prompt, *, add_special: bool = True) -> list[int]:
        """Return the prompt's tokens. Only a prompt in one piece is searched for control tokens."""
        if len(prompt) == 1 and isinstance(prompt[0], str):
            return self.ids_of(prompt[0], add_special=add_special)
        return self.ids_of_pieces(prompt, parse_special=False, add_special=add_special)

    def ids_of_pieces(
        self, pieces: Prompt, *, parse_special: bool, add_special: bool = False
    ) -> list[int]:
        """Return the tokens of all pieces. The first of them decides what `add_special` adds."""
        ids: list[int] = []
        for number, piece in enumerate(pieces):
            if isinstance(piece, int):
                ids.append(piece)
            else:
                adds = add_special and not number
                ids += self.ids_of(piece, parse_special=parse_special, add_special=adds)
        return ids

    def ids_of_generated(self, generated: Iterable[int | UnnamedTokens]) -> list[int]:
        """Return the tokens of an answer, some of which were counted without their ids."""
        ids: list[int] = []
        for each in generated:
            if isinstance(each, int):
                ids.append(each)
            else:
                # Some tokenizers put a space before any text; only the last tokens are the text's.
                ids += self.ids_of(each.text)[-each.num_tokens :]
        return ids

    def bytes_of(self, token_id: int) -> bytes:
        """Return the text of a token, which may be a part of a character."""
        room = PIECE_BYTES
        while True:
            piece = ctypes.create_string_buffer(room)
            found: int = self._llama.llama_token_to_piece(
                self._vocab, token_id, piece, room, 0, True
            )
            if found >= 0:
                return piece.raw[:found]
            room = -found

    def text_of(self, ids: Iterable[int]) -> str:
        """Return the text of tokens, with the texts of control tokens."""
        return b"".join(map(self.bytes_of, ids)).decode("utf-8", "replace")

    def text_of_prompt(self, prompt: Prompt) -> str:
        """Return the text of a prompt, with the texts of control tokens."""
        return b"".join(
            piece.encode("utf-8", "replace") if isinstance(piece, str) else self.bytes_of(piece)
            for piece in prompt
        ).decode("utf-8", "replace")

    def gap_tokens(self) -> GapTokens | None:
        """Return the tokens that mark a gap in a text, None if the model has learned none."""
        ids = (getattr(self._llama, f"llama_vocab_fim_{each}")(self._vocab) for each in GAP_MARKS)
        before, after, gap, *others = (None if each == NO_TOKEN else each for each in ids)
        if before is None or after is None or gap is None:
            return None
        return GapTokens(before, after, gap, *others)

    def keeps_every_byte(self) -> bool:
        """Return True if the tokens of a text contain each of its bytes."""
        kind: int = self._llama.llama_vocab_type(self._vocab)
        return kind in (BYTE_FALLBACK, BYTE_PAIRS)

    def strips(self) -> bool:
        """Return True if a control token takes the white space beside it."""
        attributes = map(self._attributes, range(self.size))
        return any(each & (STRIPS_LEFT | STRIPS_RIGHT) for each in attributes)

    def _attributes(self, token_id: int) -> int:
        return int(self._llama.llama_vocab_get_attr(self._vocab, token_id))


def _library() -> Any:
    """Return xllamacpp's library with the types of the functions that are used here."""
    import xllamacpp.xllamacpp as extension

    llama = ctypes.CDLL(extension.__file__)
    pointer, text, number, flag = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int32, ctypes.c_bool
    ids = ctypes.POINTER(number)
    for name, result, *arguments in (
        ("llama_model_default_params", ModelParams),
        ("llama_model_load_from_file", pointer, text, ModelParams),
        ("llama_model_get_vocab", pointer, pointer),
        ("llama_vocab_n_tokens", number, pointer),
        ("llama_vocab_type", number, pointer),
        ("llama_vocab_get_attr", number, pointer, number),
        ("llama_vocab_get_add_bos", flag, pointer),
        ("llama_vocab_fim_pre", number, pointer),
        ("llama_vocab_fim_suf", number, pointer),
        ("llama_vocab_fim_mid", number, pointer),
        ("llama_vocab_fim_rep", number, pointer),
        ("llama_vocab_fim_sep", number, pointer),
        ("llama_tokenize", number, pointer, text, number, ids, number, flag, flag),
        ("llama_token_to_piece", number, pointer, number, text, number, number, flag),
    ):
        function = getattr(llama, name)
        function.restype, function.argtypes = result, arguments
    return llama

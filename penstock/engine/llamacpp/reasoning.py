"""Tells where in an answer of llama.cpp's the reasoning is: before and after a continuation.

In: the marks of the model's chat template, requests, and the tokens of their prompts. Out: what
separates the reasoning from the rest of an answer. Not known here: llama.cpp's server.
"""

from itertools import groupby

from penstock.engine.llamacpp.vocabulary import Vocabulary
from penstock.engine.protocol import Sink
from penstock.engine.reasoning import SplitSink, Splitter, begun_answer, num_last_tokens
from penstock.request import Request, UnnamedTokens


class Reasoning:
    """The reasoning of a model whose template has these `marks`; None if it has none."""

    def __init__(self, marks: tuple[str, str] | None, vocabulary: Vocabulary) -> None:
        self._marks = marks
        self._vocabulary = vocabulary

    def marks_for(self, request: Request) -> tuple[str, str] | None:
        """Return the marks if the request has its reasoning separated."""
        return self._marks if request.separate_reasoning else None

    def split(
        self, request: Request, prompt_ids: tuple[int, ...], sink: Sink
    ) -> tuple[Sink, Splitter | None]:
        """Return a sink that separates the reasoning, if the request asks and the model reasons."""
        marks = self.marks_for(request)
        if marks is None:
            return sink, None
        splitter = self._splitter(marks, request, prompt_ids, self.text_so_far(request))
        return SplitSink(sink, splitter), splitter

    def text_so_far(self, request: Request) -> str:
        """Return the text of a continued answer so far, with its marks."""
        text = ""
        for is_text, run in groupby(request.generated, lambda each: not isinstance(each, int)):
            if is_text:
                text += "".join(each.text for each in run if isinstance(each, UnnamedTokens))
            else:
                text += self._vocabulary.text_of(each for each in run if isinstance(each, int))
        return text

    def num_thoughts(
        self, request: Request, prompt_ids: tuple[int, ...], splitter: Splitter | None
    ) -> int:
        """Return how many tokens of reasoning a continued answer already has, if it still reasons.

        Reasoning comes first, perhaps after the mark that opens it.
        """
        if splitter is None or not splitter.is_thinking or not request.generated:
            return 0
        assert self._marks is not None
        num_tokens = sum(
            each.num_tokens if isinstance(each, UnnamedTokens) else 1 for each in request.generated
        )
        if not self._splitter(self._marks, request, prompt_ids).is_thinking:
            num_tokens -= len(self._vocabulary.ids_of(self._marks[0]))
        return max(0, num_tokens)

    def end(self) -> tuple[str, tuple[int, ...]]:
        """Return the mark that ends the reasoning, and its tokens."""
        assert self._marks is not None
        return self._marks[1], tuple(self._vocabulary.ids_of(self._marks[1]))

    def _splitter(
        self,
        marks: tuple[str, str],
        request: Request,
        prompt_ids: tuple[int, ...],
        generated: str = "",
    ) -> Splitter:
        """Return the splitter for what follows the prompt and the text `generated` so far."""
        begun = begun_answer(request.messages)
        end = self._vocabulary.text_of(prompt_ids[-num_last_tokens(begun) :])
        return Splitter.after(marks, end, generated, begun)

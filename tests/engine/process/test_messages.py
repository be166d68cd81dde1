import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine.process import messages
from penstock.engine.protocol import ModelInfo
from penstock.events import TokenLogprob
from penstock.request import Message, Request, Sampling, UnnamedTokens

TO_ENGINE = [
    messages.Start("module:Class", {"n_ctx": 8, "name": "x"}),
    messages.Submit(Request(id="a", max_tokens=3, messages=(Message("user", "é\u2028\x00"),))),
    messages.Submit(
        Request(id="b", max_tokens=3, prompt_ids=(1, 2), generated=(3, UnnamedTokens("é", 2), 4))
    ),
    messages.Submit(
        Request(
            id="c",
            max_tokens=3,
            prompt="x",
            sampling=Sampling(logit_bias=((5, -1.0),), presence_penalty=1.0),
            top_logprobs=0,
            json_schema="{}",
        )
    ),
    messages.Cancel("a"),
]
FROM_ENGINE = [
    messages.Ready(ModelInfo("rill", "llamacpp", 1024, 8, ("logit_bias",), 2048)),
    messages.NotStarted("why", "what next"),
    messages.Accepted("a", (7, 8, 9)),
    messages.Started("a"),
    messages.Working("r", 512),
    messages.Delta("a", "text", 1, (7,)),
    messages.Delta("a", b"\xc3", 1, ()),
    messages.Delta("a", "x", 1, (7,), (TokenLogprob(b"x", -0.5, ((b"\xff", -1.0),)),)),
    messages.Finish("a", "stop", 2),
    messages.Fail("a", "code", "sentence"),
]


@given(st.integers(1, 50))
def test_frames_survive_being_cut_anywhere(size: int) -> None:
    data = messages.frame(FROM_ENGINE) + messages.frame([]) + messages.frame(FROM_ENGINE[:1])
    deframer, decoder = messages.Deframer(), messages.from_engine_decoder()
    bodies = [b for at in range(0, len(data), size) for b in deframer.feed(data[at : at + size])]
    assert [decoder.decode(body) for body in bodies] == [FROM_ENGINE, [], FROM_ENGINE[:1]]


def test_messages_to_the_engine_arrive_as_they_were() -> None:
    (body,) = messages.Deframer().feed(messages.frame(TO_ENGINE))
    assert messages.to_engine_decoder().decode(body) == TO_ENGINE


def test_a_frame_of_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="too long"):
        messages.Deframer().feed(b"\xff\xff\xff\xff")

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.engine import wire
from penstock.engine.protocol import ModelInfo
from penstock.events import TokenLogprob
from penstock.request import Message, Request, Sampling, UnnamedTokens

TO_ENGINE = [
    wire.Start("module:Class", {"n_ctx": 8, "name": "x"}),
    wire.Submit(Request(id="a", max_tokens=3, messages=(Message("user", "é\u2028\x00"),))),
    wire.Submit(
        Request(id="b", max_tokens=3, prompt_ids=(1, 2), generated=(3, UnnamedTokens("é", 2), 4))
    ),
    wire.Submit(
        Request(
            id="c",
            max_tokens=3,
            prompt="x",
            sampling=Sampling(logit_bias=((5, -1.0),), presence_penalty=1.0),
            top_logprobs=0,
            json_schema="{}",
        )
    ),
    wire.Cancel("a"),
]
FROM_ENGINE = [
    wire.Ready(ModelInfo("rill", "llamacpp", 1024, 8, ("logit_bias",), 2048)),
    wire.NotStarted("why", "what next"),
    wire.Accepted("a", (7, 8, 9)),
    wire.Started("a"),
    wire.Working(),
    wire.Delta("a", "text", 1, (7,)),
    wire.Delta("a", b"\xc3", 1, ()),
    wire.Delta("a", "x", 1, (7,), (TokenLogprob(b"x", -0.5, ((b"\xff", -1.0),)),)),
    wire.Finish("a", "stop", 2),
    wire.Fail("a", "code", "sentence"),
]


@given(st.integers(1, 50))
def test_frames_survive_being_cut_anywhere(size: int) -> None:
    data = wire.frame(FROM_ENGINE) + wire.frame([]) + wire.frame(FROM_ENGINE[:1])
    deframer, decoder = wire.Deframer(), wire.from_engine_decoder()
    bodies = [b for at in range(0, len(data), size) for b in deframer.feed(data[at : at + size])]
    assert [decoder.decode(body) for body in bodies] == [FROM_ENGINE, [], FROM_ENGINE[:1]]


def test_messages_to_the_engine_arrive_as_they_were() -> None:
    (body,) = wire.Deframer().feed(wire.frame(TO_ENGINE))
    assert wire.to_engine_decoder().decode(body) == TO_ENGINE


def test_a_frame_of_absurd_length_is_refused() -> None:
    with pytest.raises(ValueError, match="not ours"):
        wire.Deframer().feed(b"\xff\xff\xff\xff")

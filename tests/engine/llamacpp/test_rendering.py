"""Chat templates run in a sandbox, for a bounded number of steps."""

import time

import pytest

from penstock.engine.llamacpp.props import Props
from penstock.engine.llamacpp.rendering import ChatTemplate, TemplateTooCostlyError
from penstock.engine.turns import TemplateRefusedError
from penstock.request import Message, Request

REQUEST = Request("", 1)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, Props.Caps(), begin="<s>", end="</s>", drops_begin=True)


def render(source: str, *contents: str) -> str:
    messages = tuple(Message("user", content) for content in contents)
    return template(source).render(REQUEST, messages, opens_answer=True)


def test_white_space_around_statements_is_dropped_as_in_transformers() -> None:
    lines = "{{ bos_token }}\n  {% for m in messages %}\n[{{ m.content }}]\n  {% endfor %}\n{{ x }}"
    assert render(lines, "a", " b ") == "\n[a]\n[ b ]\n"


def test_loops_may_be_left() -> None:
    source = "{% for m in messages %}{% if loop.index0 == 1 %}{% break %}{% endif %}x{% endfor %}"
    assert render(source, "a", "b") == "x"


@pytest.mark.parametrize(
    "expression",
    [
        "raise_exception('no')",
        "1 / 0",
        "messages.append(1)",
        "range(10000000) | list | length",
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__class__.__init__.__globals__['os'].system('true')",
        "'{0.__class__.__mro__}'.format(messages).nothing()",
        "cycler.__init__.__globals__",
        "'a' + 1",
        "nothing()",
    ],
)
def test_what_a_template_may_not_do_refuses_the_conversation(expression: str) -> None:
    try:
        shown = render(f"{{{{ {expression} }}}}", "a")
    except TemplateRefusedError:
        return
    assert shown == ""  # what is not safe has no value


def test_a_template_that_jinja_cannot_read_is_left_to_llama_cpp() -> None:
    for source in ("{% for %}", "{{", "{% nothing %}"):
        with pytest.raises(TemplateRefusedError):
            template(source)


def test_a_template_that_repeats_itself_for_every_turn_ends() -> None:
    source = "{% for a in messages %}{% for b in messages %}{{ b.role }}{% endfor %}{% endfor %}"
    assert render(source, *["a"] * 100) == "user" * 100**2
    began = time.thread_time()  # a busy machine takes longer, but works no more
    with pytest.raises(TemplateTooCostlyError):
        render(source, *["a"] * 20_000)  # 400 million steps
    assert time.thread_time() - began < 30


def test_a_prompt_has_a_bounded_length() -> None:
    source = "{% for a in messages %}{% for b in messages %}{{ b.content }}{% endfor %}{% endfor %}"
    with pytest.raises(TemplateTooCostlyError):
        render(source, *["a" * 4000] * 1000)  # four billion characters


def test_a_conversation_of_many_turns_is_far_from_the_bound() -> None:
    source = "{% for m in messages %}" + "{{ m.role }}" * 50 + "{% endfor %}"
    assert render(source, *["a"] * 10_000)

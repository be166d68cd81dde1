import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.events import Delta, Finish, Timings, Usage
from penstock.stream.log import Log

END = Finish("stop", Usage(1, 2), Timings(0.0, None, 0.0, None))


def log_of(texts: list[str]) -> Log:
    log = Log()
    for text in texts:
        log.append(Delta(text, 1))
    return log


def test_a_log_refuses_an_event_after_its_terminal_event() -> None:
    log = log_of(["a"])
    log.end(END)
    with pytest.raises(RuntimeError, match="terminal"):
        log.append(Delta("b", 1))
    with pytest.raises(RuntimeError, match="terminal"):
        log.end(END)
    assert len(log) == 2


def test_the_terminal_event_is_the_last_one() -> None:
    log = log_of(["a", "b"])
    log.end(END)
    assert log.terminal is END
    assert log.after(2) == [END]


@given(st.lists(st.text()), st.data())
def test_reading_from_any_cursor_in_any_steps_gives_each_event_once(
    texts: list[str], data: st.DataObject
) -> None:
    log = log_of(texts)
    cursor = data.draw(st.integers(0, len(texts)))
    rest = log.after(cursor)
    assert [event.text for event in rest if isinstance(event, Delta)] == texts[cursor:]
    assert log.text() == "".join(texts)

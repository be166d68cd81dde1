from dataclasses import dataclass

from penstock.web.liveness import Liveness

HEARTBEAT_S, STALL_S = 15.0, 30.0


@dataclass(eq=False)
class Response:
    """The part of a response that `Liveness` uses."""

    is_sending: bool = False
    stream_id: str = "a"
    since: float = 100.0
    lag: int = 0
    num_signs: int = 0
    num_stops: int = 0

    def send_sign_of_life(self) -> None:
        self.num_signs += 1

    def stop(self) -> None:
        self.num_stops += 1


def liveness_of(response: Response) -> Liveness:
    liveness = Liveness(HEARTBEAT_S, STALL_S)
    liveness.add(response)
    return liveness


def test_a_silent_response_sends_a_sign_of_life_in_time_and_not_before() -> None:
    response = Response()
    liveness = liveness_of(response)
    liveness.check(response.since + HEARTBEAT_S - 1)
    assert response.num_signs == 0
    liveness.check(response.since + HEARTBEAT_S + 1)
    assert response.num_signs == 1


def test_a_send_that_waits_too_long_is_ended_and_not_before() -> None:
    response = Response(is_sending=True)
    liveness = liveness_of(response)
    liveness.check(response.since + STALL_S - 1)
    assert response.num_stops == 0
    liveness.check(response.since + STALL_S + 1)
    assert response.num_stops == 1
    assert response.num_signs == 0
    assert liveness.num_stalled == 1


def test_a_send_that_was_taken_is_not_stalled_however_long_ago() -> None:
    response = Response()
    liveness = liveness_of(response)
    liveness.check(response.since + 10 * STALL_S)
    assert response.num_stops == 0
    liveness.remove(response)
    assert len(liveness) == 0


def test_lags_are_those_of_all_responses() -> None:
    liveness = liveness_of(Response(lag=3))
    liveness.add(Response(lag=0))
    assert sorted(liveness.lags()) == [0, 3]

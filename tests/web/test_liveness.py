from dataclasses import dataclass

from penstock.web.liveness import Pulse

HEARTBEAT_S, STALL_S = 15.0, 30.0


@dataclass(eq=False)
class Response:
    """What the pulse sees of one."""

    is_sending: bool = False
    since: float = 100.0
    lag: int = 0
    num_signs: int = 0
    num_stops: int = 0

    def send_sign_of_life(self) -> None:
        self.num_signs += 1

    def stop(self) -> None:
        self.num_stops += 1


def pulse_of(response: Response) -> Pulse:
    pulse = Pulse(HEARTBEAT_S, STALL_S)
    pulse.add(response)
    return pulse


def test_a_silent_response_sends_a_sign_of_life_in_time_and_not_before() -> None:
    response = Response()
    pulse = pulse_of(response)
    pulse.beat(response.since + HEARTBEAT_S - 1)
    assert response.num_signs == 0
    pulse.beat(response.since + HEARTBEAT_S + 1)
    assert response.num_signs == 1


def test_a_send_that_waits_too_long_is_ended_and_not_before() -> None:
    response = Response(is_sending=True)
    pulse = pulse_of(response)
    pulse.beat(response.since + STALL_S - 1)
    assert response.num_stops == 0
    pulse.beat(response.since + STALL_S + 1)
    assert response.num_stops == 1
    assert response.num_signs == 0
    assert pulse.num_stalled == 1


def test_a_send_that_was_taken_is_not_stalled_however_long_ago() -> None:
    response = Response()
    pulse = pulse_of(response)
    pulse.beat(response.since + 10 * STALL_S)
    assert response.num_stops == 0
    pulse.remove(response)
    assert len(pulse) == 0


def test_lags_are_those_of_all_responses() -> None:
    pulse = pulse_of(Response(lag=3))
    pulse.add(Response(lag=0))
    assert sorted(pulse.lags()) == [0, 3]

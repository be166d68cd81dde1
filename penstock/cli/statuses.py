"""Says in a sentence what happens to a stream besides its text.

In: the statuses of one stream, in order. Out: a sentence for each that a person wants to know, else
"". Not known here: the terminal.
"""

from penstock.client import StreamStatus


class StatusTeller:
    """Tells each thing once, though statuses repeat with new figures."""

    def __init__(self) -> None:
        self._told = ""
        self._is_interrupted = False

    def tell(self, status: StreamStatus) -> str:
        """Return what is new in a status, or ""."""
        match status.state:
            case "prefill":
                return ""
            case "generating":
                goes_on, self._is_interrupted, self._told = self._is_interrupted, False, ""
                return "the answer goes on" if goes_on else ""
            case "stalled" | "restarting" | "moved" | "waiting" | "continuing":
                self._is_interrupted = True
        topic = f"{status.state} {status.position}"
        if topic == self._told:
            return ""
        self._told = topic
        return _sentence(status)


def _sentence(status: StreamStatus) -> str:
    match status.state:
        case "queued":
            eta = "" if status.eta is None else f", about {max(1, round(status.eta))} s"
            return f"waiting: place {status.position} in the queue{eta}"
        case "stalled":
            return (
                f"the engine has been silent for {status.seconds or 0:.0f} s; it is restarted after"
                f" {status.limit or 0:.0f} s"
            )
        case "restarting":
            return f"the engine died and restarts; {_kept(status.tokens)}"
        case "moved":
            return f"another server takes the answer over; {_kept(status.tokens)}"
        case "waiting":
            return "no server that runs the model is there; the answer waits for one"
        case "continuing":
            return f"a server that runs the model takes the answer over; {_kept(status.tokens)}"
    return ""  # a later server's state


def _kept(number: int | None) -> str:
    match number:
        case None | 0:
            return "the answer begins again"
        case 1:
            return "1 token is kept"
    return f"{number} tokens are kept"

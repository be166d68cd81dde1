"""How an upstream fails, and how it refuses a request.

An upstream's failure is the upstream's fault: the request goes on elsewhere. A refusal is the
request's fault: no other upstream is asked. No message contains what an upstream sent.
"""


class UpstreamError(Exception):
    """An upstream failed; the message says how, for the log.

    `began` is True if the upstream may have worked on the request. `is_busy` is True if the
    upstream only has too much to do; it may ask for a `pause`, in seconds.
    """

    def __init__(
        self, message: str, *, began: bool = True, is_busy: bool = False, pause: float = 0.0
    ) -> None:
        super().__init__(message)
        self.began = began
        self.is_busy = is_busy
        self.pause = pause


class MissingError(UpstreamError):
    """An upstream says that its model, or the route for this kind of request, is not there."""


class GarbageError(UpstreamError):
    """An upstream sent something that no such server sends."""


class RefusedError(Exception):
    """An upstream refuses the request with this HTTP status and error code (or "")."""

    def __init__(self, status: int, code: str) -> None:
        super().__init__(f"it refuses the request (HTTP {status})")
        self.status = status
        self.code = code


class GivenUpError(Exception):
    """A request is given up with the error code `code`; the message is a sentence."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code

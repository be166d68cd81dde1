"""How a client asks to be told what happens to its stream (see `stream.status`).

The header `X-Penstock-Status: true` asks for comments, on every route that streams. The query
`status_events=true` of a reader asks for events: an `EventSource` sends no headers and sees no
comments.
"""

from starlette.requests import Request as HttpRequest

from penstock.api.headers import values_of
from penstock.errors import Problem
from penstock.web.statuses import Show, status_comment, status_event


def show_for(http: HttpRequest) -> Show | None:
    """Return how statuses are shown to this client, None if it wants none. Raises Problem."""
    given = values_of(http, b"x-penstock-status")
    if not given:
        return None
    if given not in (["true"], ["false"]):
        raise Problem("invalid_value", "X-Penstock-Status is true or false.")
    return status_comment if given == ["true"] else None


def show_for_reader(http: HttpRequest) -> Show | None:
    """Return how statuses are shown to a reader of `/streams/{id}`. Raises Problem."""
    given = http.query_params.getlist("status_events")
    if given not in ([], ["true"], ["false"]):
        raise Problem("invalid_value", "status_events is true or false.")
    return status_event if given == ["true"] else show_for(http)

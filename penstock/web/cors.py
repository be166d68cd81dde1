"""Lets web pages of other origins use the server, if the operator admits them (`--cors-origin`)."""

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse, Response


class Cors(CORSMiddleware):
    """ASGI middleware: answers browsers that ask whether a page may use the server."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Return the answer. A refusal says how to admit the page."""
        response = super().preflight_response(request_headers)
        if response.status_code == 200:
            return response
        del response.headers["content-length"]
        refusal = response.body.decode()  # type: ignore[union-attr] # it was made from a string
        return PlainTextResponse(
            f"{refusal}. Start the server with --cors-origin ORIGIN to admit a page's origin.",
            response.status_code,
            dict(response.headers),
        )

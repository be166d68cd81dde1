"""The listening socket. Accepted connections inherit its options."""

import errno
import socket

from penstock.errors import StartError

# The kernel buffers twice this for a client that does not read. Its own default is megabytes:
# minutes of tokens before anyone could notice.
SEND_BUFFER_BYTES = 32 * 1024


def open_listener(
    host: str, port: int, max_connections: int, stall_timeout: float, flags: str = "--"
) -> socket.socket:
    """Return the listening socket. Raises StartError if the address is not available.

    `max_connections` is the length of the kernel's queue of new connections. The kernel drops a
    connection whose client takes nothing for about twice `stall_timeout` seconds (Linux only).
    `flags` is how the flags begin that give the address, for an error's next step.
    """
    host = host.strip("[]")  # as in a URL
    try:
        # The kernel's clock starts before ours, and it cannot tell slow clients from dead ones.
        return listen(host, port, max_connections, max(2 * stall_timeout, stall_timeout + 10))
    except OSError as error:
        reasons = {
            errno.EADDRINUSE: (
                f"Port {port} is in use on {host}.",
                f"Stop the program that listens there, or use another port: {flags}port {port + 1}",
            ),
            errno.EACCES: (
                f"This user may not listen on port {port} of {host}.",
                f"Ports below 1024 need administrator rights. Use another port: {flags}port 8000",
            ),
        }
        unknown = (
            f"Cannot listen on {host}:{port}: {error.strerror}.",
            f"Give an address of this machine: {flags}host 127.0.0.1",
        )
        raise StartError(*reasons.get(error.errno or 0, unknown)) from None


def listen(host: str, port: int, backlog: int, user_timeout: float) -> socket.socket:
    """Return a listening TCP socket. Raises OSError.

    The kernel drops a connection whose peer acknowledges nothing for `user_timeout` seconds,
    whether it is stalled or has vanished (Linux only).
    """
    family, kind, proto, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        # Otherwise a token waits up to 40 ms for the client to acknowledge the one before (Nagle's
        # algorithm against delayed acknowledgements).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            milliseconds = int(user_timeout * 1000)
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        listener.bind(address)
        listener.listen(backlog)
        listener.setblocking(False)
    except OSError:
        listener.close()
        raise
    return listener


def url_of(listener: socket.socket, scheme: str = "http") -> str:
    """Return the URL at which a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - compared, not bound
    return f"{scheme}://{host}:{port}"

"""The health check of Penstock's image: ends with 0 if the server is ready, and with 1 if not."""

import http.client
import os
import sys


def is_ready(port: int) -> bool:
    """Return whether the server with this admin port can take requests."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=4)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False


if __name__ == "__main__":
    sys.exit(not is_ready(int(os.environ["PENSTOCK_ADMIN_PORT"])))

"""Runs the server, one process on one address, and opens the browser."""

import contextlib
import socket
import threading
import webbrowser
from collections.abc import Callable

import uvicorn
from starlette.types import ASGIApp

from kd_convnext.errors import ConfigError, Finding

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine can reach."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Takes a port, before anything else is loaded.

    Args:
        host: Name or number of the interface.
        port: 0 for any free one.

    Raises:
        ConfigError: It is taken, or the host is not this machine's.
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        found = socket.socket(family, socket.SOCK_STREAM)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind((host, port))
    except OSError as error:
        what = f"{host}:{port} cannot be used ({error.strerror})"
        raise ConfigError(Finding("--port", what, "Give another --port, or 0 for any free one.")) from error
    return found


def serve(
    app: ASGIApp, listening: socket.socket, address: str, *, open_browser: bool, ready: Callable[[], None]
) -> None:
    """Serves until it is interrupted.

    Args:
        app: The application.
        listening: As `bound_socket` made it.
        address: With the token, for the browser.
        open_browser: Whether to open it there.
        ready: Called once the server answers.
    """
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, server_header=False, timeout_graceful_shutdown=5, ws="none"
    )
    server = uvicorn.Server(config)

    def announce() -> None:
        while not server.started:
            if server.should_exit or stopped.wait(0.05):
                return
        ready()
        if open_browser:
            with contextlib.suppress(webbrowser.Error):
                webbrowser.open(address)

    stopped = threading.Event()
    waiting = threading.Thread(target=announce, daemon=True)
    waiting.start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        pass  # uvicorn hands on the interrupt by which it was stopped
    finally:
        stopped.set()
        listening.close()

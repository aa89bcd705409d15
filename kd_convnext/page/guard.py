"""Authorises requests to the server by token, cookie, host, origin and size."""

import contextlib
import hashlib
import secrets
from dataclasses import dataclass

from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MAX_BODY = 64 << 20
"""Bytes of one request: a photograph of 200 megapixels as JPEG, or of 16 as uncompressed TIFF."""

OPEN = "/healthz"
"""The one path that needs no token: it says that the server lives, and nothing else."""

_DRAINED = (
    8 * MAX_BODY
)  # read and dropped of a body that is too large, so that its sender gets the answer that refuses it
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
_CHANGING = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_HEADERS = {
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass(frozen=True)
class Access:
    """Decides which requests are authorised.

    Attributes:
        token: The secret in the address.
        port: That the server listens on; browsers keep cookies of all ports together, so it is in the cookie's name.
        local: Whether only the names of this machine's loopback may stand in the address.
    """

    token: str
    port: int
    local: bool = True

    @property
    def cookie(self) -> str:
        """The cookie's name."""
        return f"kd_convnext_{self.port}"

    @property
    def session(self) -> str:
        """The cookie's value; the token cannot be found from it."""
        return hashlib.sha256(f"kd-convnext page {self.token}".encode()).hexdigest()

    def known(self, request: Request) -> bool:
        """Tells whether a request carries the cookie, or the token as ``Authorization: Bearer``."""
        return _equal(request.cookies.get(self.cookie, ""), self.session) or self.bearer(request)

    def bearer(self, request: Request) -> bool:
        """Tells whether a request carries the token in its header, which no browser adds by itself."""
        kind, _, value = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and _equal(value.strip(), self.token)

    def refusal(self, request: Request) -> str | None:
        """Returns why a request must not be heard, whatever it carries; None where it may."""
        host = request.headers.get("host", "")
        if self.local and host.rpartition(":")[0] not in _LOOPBACK and host not in _LOOPBACK:
            return "This page answers at 127.0.0.1 alone. Open the address that the command printed."
        origin = request.headers.get("origin")
        foreign = "Another site has asked for this. Open the address that the command printed."
        if origin is not None and origin != f"{request.url.scheme}://{host}":
            return foreign
        entering = request.url.path == "/" and request.method == "GET"
        if origin is None and not entering and request.headers.get("sec-fetch-site") in ("cross-site", "same-site"):
            return foreign
        if origin is None and request.method in _CHANGING and not self.bearer(request):
            return "A change needs the page itself (Origin) or a header Authorization: Bearer TOKEN."
        return None


class Guard:
    """Middleware before the application: refuses what `Access` does not authorise."""

    def __init__(self, app: ASGIApp, access: Access) -> None:
        """Wraps an application."""
        self.app, self.access = app, access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return  # there are no websockets here
        request = Request(scope)
        answer = self._answer(request)
        if answer is not None:
            await answer(scope, receive, _with_headers(send))
            return
        await _Limited(self.app, receive, _with_headers(send)).run(scope, request)

    def _answer(self, request: Request) -> Response | None:
        """Returns a response where the application is not to be asked."""
        problem = self.access.refusal(request)
        if problem is not None:
            return PlainTextResponse(f"{problem}\n", 403)
        if request.url.path == OPEN:
            return None
        given = request.query_params.get("token")
        if given is not None and request.method == "GET" and request.url.path == "/":
            if not _equal(given, self.access.token):
                return PlainTextResponse("The token in the address is wrong. Copy the address whole.\n", 403)
            response = RedirectResponse("/", 303)  # the token is in no history and in no later address
            response.set_cookie(self.access.cookie, self.access.session, httponly=True, samesite="strict", path="/")
            return response
        if not self.access.known(request):
            return PlainTextResponse("Open the address with its token, as the command printed it.\n", 401)
        return None


class _Limited:
    """Counts a request's body, and answers 413 in place of the application where it is too large."""

    def __init__(self, app: ASGIApp, receive: Receive, send: Send) -> None:
        self.app, self._receive, self._send = app, receive, send
        self.count, self.over, self.started = 0, False, False

    async def run(self, scope: Scope, request: Request) -> None:
        length = request.headers.get("content-length", "0")
        if length.isdigit() and int(length) > MAX_BODY:
            self.over = True
            if int(length) <= _DRAINED:
                while (await self._receive()).get("more_body"):
                    pass
        else:
            with contextlib.suppress(_TooLargeError):
                await self.app(scope, self.receive, self.send)
        if self.over and not self.started:
            what = f"more than {MAX_BODY >> 20} MB were sent at once"
            finding = {"where": "upload", "what": what, "remedy": "Send a smaller photograph."}
            await JSONResponse({"findings": [finding]}, 413)(scope, self._receive, self._send)

    async def receive(self) -> Message:
        message = await self._receive()
        self.count += len(message.get("body", b""))
        if self.count > MAX_BODY:
            self.over = True
            raise _TooLargeError
        return message

    async def send(self, message: Message) -> None:
        if self.over and not self.started:
            return
        self.started = True
        await self._send(message)


class _TooLargeError(Exception):
    """More was sent than `MAX_BODY`."""


def new_token() -> str:
    """Makes a token of 192 random bits."""
    return secrets.token_urlsafe(24)


def _equal(given: str, right: str) -> bool:
    return secrets.compare_digest(given.encode(), right.encode())


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            held = {name for name, _ in message["headers"]}
            more = [(name.encode(), value.encode()) for name, value in _HEADERS.items() if name.encode() not in held]
            message = {**message, "headers": [*message["headers"], *more]}
        await send(message)

    return sending

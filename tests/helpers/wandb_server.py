"""A server on this machine that answers what W&B's own client asks while it saves a view of a project."""

import gzip
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

USER = {"id": "1", "entity": "lab", "username": "u", "email": "u@lab", "flags": "{}", "teams": {"edges": []}}


@contextmanager
def listening() -> Iterator[tuple[str, list[dict[str, str]]]]:
    """Yields the address, and the list that views are put into as they are saved."""
    views: list[dict[str, str]] = []

    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            asked = json.loads(gzip.decompress(body) if body[:2] == b"\x1f\x8b" else body)
            data: dict[str, object] = {"viewer": USER}
            if "upsertView" in asked["query"]:
                views.append(asked["variables"])
                data = {"upsertView": {"view": {"id": "1", "name": asked["variables"]["name"]}, "inserted": True}}
            answer = json.dumps({"data": data}).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Answer) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}", views
        running.shutdown()

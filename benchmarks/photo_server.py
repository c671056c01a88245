"""A server that takes a photo as the body of a POST and answers `{"caption": ...}`."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Caption the body; each request has its thread, and all of them the one pipeline."""

    server: "Server"

    def do_POST(self) -> None:
        """Answer with JSON."""
        photo = self.rfile.read(int(self.headers["Content-Length"]))
        answer = json.dumps({"caption": self.server.captioner(photo)[0]["generated_text"]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Serves a pipeline."""

    daemon_threads = True
    request_queue_size = 256
    captioner: Any


@contextmanager
def photo_server(captioner: Any) -> Iterator[str]:
    """Serve a pipeline on this machine, and yield the address."""
    with Server(("127.0.0.1", 0), Handler) as server:
        server.captioner = captioner
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()

"""Many clients at once, each with its own photo, each checking that the caption that comes back is that photo's.

Against a server that takes a photo as the body of a POST and answers `{"caption": ...}`, or against a gradio app:

    python tests/reliability/load_generator.py http://127.0.0.1:7860 photos/ --gradio caption \\
        --inputs '[1, "beam search", 1, 1.0]' --clients 64 --seconds 600

What a photo's caption is, is asked for once, photo by photo, before the clients start.
"""

import argparse
import base64
import http.client
import json
import math
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PATIENCE = 600.0  # seconds that an answer may take; on a busy machine 64 clients wait for each other
Ask = Callable[[bytes], Any]


@dataclass
class Load:
    """How it went.

    Attributes:
        answers: photos captioned.
        seconds: for how long.
        latencies: seconds of each answer, sorted.
        errors: what went wrong, and answers that were another photo's.
    """

    answers: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        return self.latencies[min(len(self.latencies) - 1, int(share * len(self.latencies)))]

    def __str__(self) -> str:
        if not self.latencies:
            return f"no answers; {len(self.errors)} errors, such as {self.errors[:1]}"
        return (
            f"{self.answers:,} answers in {self.seconds:.0f} s, {self.answers / self.seconds:.1f} a second; "
            f"p50 {1000 * self.percentile(0.5):.0f} ms, p99 {1000 * self.percentile(0.99):.0f} ms; "
            f"errors: {len(self.errors)}"
        )


def _request(url: str, method: str, path: str, body: bytes | None = None, kind: str = "") -> bytes:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=PATIENCE)
    try:
        connection.request(method, parts.path.rstrip("/") + path, body, {"Content-Type": kind} if kind else {})
        response = connection.getresponse()
        content = response.read()
        if response.status != 200:
            raise OSError(f"{path}: {response.status} {content[:200]!r}")
        return content
    finally:
        connection.close()


def plain(url: str) -> Ask:
    """Ask a server that takes the photo as the body."""
    return lambda photo: json.loads(_request(url, "POST", "/", photo, "image/png"))["caption"]


def gradio(url: str, name: str, inputs: Sequence[Any]) -> Ask:
    """Ask a gradio app, whose function takes the photo first and then `inputs`, by its HTTP interface."""

    def ask(photo: bytes) -> Any:
        mark = uuid.uuid4().hex
        head = f'--{mark}\r\nContent-Disposition: form-data; name="files"; filename="photo.png"\r\n'
        form = head.encode() + b"Content-Type: image/png\r\n\r\n" + photo + f"\r\n--{mark}--\r\n".encode()
        kind = f"multipart/form-data; boundary={mark}"
        (path,) = json.loads(_request(url, "POST", "/gradio_api/upload", form, kind))
        file = {"path": path, "orig_name": "photo.png", "meta": {"_type": "gradio.FileData"}}
        call = json.dumps({"data": [file, *inputs]}).encode()
        where = f"/gradio_api/call/{name}"
        event = json.loads(_request(url, "POST", where, call, "application/json"))["event_id"]
        answer = _request(url, "GET", f"{where}/{event}").decode()
        event_name, _, data = answer.strip().rpartition("\n")
        if "event: complete" not in event_name:
            raise OSError(f"{name}: {answer[-300:]!r}")
        return json.loads(data.removeprefix("data: "))

    return ask


def gradio_at_once(url: str, name: str, inputs: Sequence[Any]) -> Ask:
    """Ask a gradio app in one request, with the photo inside, which does not wait in gradio's queue.

    Each thread is a visitor with a name of its own, for whom gradio keeps a copy of the page's settings.
    """

    def ask(photo: bytes) -> Any:
        inside = f"data:image/png;base64,{base64.b64encode(photo).decode()}"
        file = {"url": inside, "meta": {"_type": "gradio.FileData"}}
        call = json.dumps({"data": [file, *inputs], "session_hash": f"client {threading.get_ident()}"}).encode()
        return json.loads(_request(url, "POST", f"/gradio_api/run/{name}", call, "application/json"))["data"]

    return ask


def same(answer: Any, mine: Any) -> bool:
    """Whether two answers are equal but for rounding, which depends on the other photos of a batch."""
    if isinstance(answer, dict) and isinstance(mine, dict):
        return answer.keys() == mine.keys() and all(same(answer[name], mine[name]) for name in mine)
    if isinstance(answer, list) and isinstance(mine, list):
        return len(answer) == len(mine) and all(map(same, answer, mine))
    if isinstance(answer, float) and isinstance(mine, float):
        return math.isclose(answer, mine, rel_tol=1e-4, abs_tol=1.5e-4)
    return bool(answer == mine)


def press(ask: Ask, photos: Sequence[bytes], wanted: Sequence[Any], clients: int, seconds: float) -> Load:
    """Let `clients` threads ask for their own photo over and over, for so many seconds."""
    load, lock = Load(), threading.Lock()
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        photo, mine = photos[number % len(photos)], wanted[number % len(photos)]
        while True:  # once at least
            start, error = time.monotonic(), ""
            try:
                answer = ask(photo)
                if not same(answer, mine):
                    error = f"client {number}: {answer!r}, not {mine!r}"
            except Exception as problem:
                error = f"client {number}: {type(problem).__name__}: {problem}"
            with lock:
                load.answers += not error
                load.latencies.append(time.monotonic() - start)
                load.errors += [error] if error else []
            if time.monotonic() >= end:
                return

    start = time.monotonic()
    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.seconds = time.monotonic() - start
    load.latencies.sort()
    return load


def main() -> None:
    """Ask, press, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url")
    parser.add_argument("photos", type=Path)
    parser.add_argument("--gradio", metavar="NAME", help="the app's function")
    parser.add_argument("--at_once", action="store_true", help="in one request, past gradio's queue")
    parser.add_argument("--inputs", type=json.loads, default=[], help="what it takes besides the photo, as JSON")
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=600)
    args = parser.parse_args()
    way = gradio_at_once if args.at_once else gradio
    ask = way(args.url, args.gradio, args.inputs) if args.gradio else plain(args.url)
    photos = [file.read_bytes() for file in sorted(args.photos.iterdir()) if file.is_file()][: args.clients]
    wanted = [ask(photo) for photo in photos]
    print(f"{len(photos)} photos, {len({json.dumps(answer) for answer in wanted})} different answers")
    load = press(ask, photos, wanted, args.clients, args.seconds)
    print(load)
    raise SystemExit(bool(load.errors))


if __name__ == "__main__":
    main()

"""Photos from the web: what is fetched, what is refused, and when it is given up."""

import io
import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from nic_hf.download import ALLOW_PRIVATE, download
from nic_hf.images import load_photo

PUBLIC = "93.184.216.34"


def photo(width: int = 8, height: int = 6) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(stream, "PNG")
    return stream.getvalue()


class Web(BaseHTTPRequestHandler):
    """Answers by path; `port` of the server stands where an address needs it."""

    def do_GET(self) -> None:
        self.server.asked.append((self.headers["Host"], self.path))
        name = self.path.strip("/")
        if name.startswith("to/"):
            self.send_response(302)
            self.send_header("Location", name[3:].replace("PORT", str(self.server.server_port)))
            self.end_headers()
        elif name == "page":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>a photo was here</html>")
        elif name.startswith("slow"):  # each answer within the time, all of them not
            self.server.stop.wait(0.2)
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/slow") or "/a.png")
            self.end_headers()
        elif name in ("hang", "drip", "drip-headers"):
            if name == "drip":
                self.send_response(200)
                self.end_headers()
            for _ in range(100):
                if self.server.stop.wait(0.1):
                    break
                if name != "hang":
                    try:
                        self.wfile.write(b"x")
                    except OSError:
                        break
        elif name == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"x" * 10)
        elif name.endswith(".png"):
            self.send_response(200)
            self.send_header("Content-Type", "image/png")
            self.end_headers()
            self.wfile.write(photo())
        else:
            self.send_error(404)

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def web() -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Web) as server:
        server.asked, server.stop = [], threading.Event()
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server
        server.stop.set()
        server.shutdown()


@pytest.fixture
def internet(web: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """The server as `photos.example` on a public address; `inside.example` is a private one. Nothing leaves here."""
    names = {"photos.example": [PUBLIC], "inside.example": ["10.0.0.7"], "both.example": [PUBLIC, "::1"]}
    real = socket.create_connection

    def look_up(host: str, port: Any, *args: Any, **kwargs: Any) -> list:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in names.get(host, [host])]

    def connect(address: tuple, *args: Any, **kwargs: Any) -> socket.socket:
        assert address[0] == PUBLIC, f"a connection to {address} was opened"
        return real(("127.0.0.1", web.server_port), *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    monkeypatch.delenv(ALLOW_PRIVATE, raising=False)
    return f"http://photos.example:{web.server_port}"


def test_a_private_address_is_refused_unless_it_is_allowed(web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"http://127.0.0.1:{web.server_port}/a.png"
    monkeypatch.delenv(ALLOW_PRIVATE, raising=False)
    with pytest.raises(OSError, match=rf"{url}: .*private address 127\.0\.0\.1, which is refused"):
        load_photo(url)
    assert web.asked == []
    assert load_photo(url, allow_private=True).size == (8, 6)
    monkeypatch.setenv(ALLOW_PRIVATE, "1")
    assert load_photo(url).size == (8, 6)
    with pytest.raises(OSError, match="refused"):
        load_photo(url, allow_private=False)


@pytest.mark.parametrize(
    "host", ["localhost", "0.0.0.0", "[::1]", "[::ffff:127.0.0.1]", "169.254.169.254", "192.168.1.1", "2130706433"]
)
def test_private_addresses_in_every_spelling_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "create_connection", None)  # no connection is tried
    with pytest.raises(OSError, match="private address"):
        download(f"http://{host}/a.png", allow_private=False)


def test_public_addresses_and_redirects_between_them_are_followed(internet: str, web: Any) -> None:
    assert download(f"{internet}/a.png") == photo()
    assert download(f"{internet}/to//to/../b.png") == photo()
    assert [path for _, path in web.asked][-1] == "/b.png"


@pytest.mark.parametrize("target", ["http://127.0.0.1:PORT/a.png", "http://inside.example/a", "http://both.example/"])
def test_a_redirect_to_a_private_address_is_refused(target: str, internet: str, web: Any) -> None:
    with pytest.raises(OSError, match="private address"):
        download(f"{internet}/to/{target}")
    assert len(web.asked) == 1


def test_a_name_that_moves_after_it_was_checked_leads_nowhere_else(
    internet: str, web: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the first answer is public, each later one is not. What was checked is what is connected to."""
    answers = [PUBLIC, "127.0.0.1", "10.0.0.7"]
    asked: list[str] = []

    def look_up(host: str, port: Any, *args: Any, **kwargs: Any) -> list:
        address = host
        if host == "moving.example":
            asked.append(host)
            address = answers[min(len(asked), len(answers)) - 1]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    assert download(f"http://moving.example:{web.server_port}/a.png") == photo()  # `connect` lets only PUBLIC pass
    assert asked == ["moving.example"], "a second look would have found another address"
    with pytest.raises(OSError, match=r"moving\.example is the private address 127\.0\.0\.1"):
        download(f"http://moving.example:{web.server_port}/a.png")
    asked.clear()
    with pytest.raises(OSError, match=r"private address 127\.0\.0\.1"):
        download(f"http://moving.example:{web.server_port}/to/http://moving.example/a.png")
    assert len(web.asked) == 2, "the redirect was answered, and not followed"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate of `photos.example` that signs itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    file = tmp_path_factory.mktemp("certificate") / "photos.example.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=photos.example"]
    command += ["-addext", "subjectAltName=DNS:photos.example", "-keyout", str(file), "-out", f"{file}.crt"]
    subprocess.run(command, check=True, capture_output=True)
    file.write_text(file.read_text() + Path(f"{file}.crt").read_text())
    return file


def test_an_encrypted_address_is_checked_as_a_plain_one_and_its_certificate_too(
    internet: str, web: Any, certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    web.socket = context.wrap_socket(web.socket, server_side=True)
    secure = internet.replace("http:", "https:")
    with pytest.raises(OSError, match="certificate verify failed"):
        download(f"{secure}/a.png")
    monkeypatch.setenv("SSL_CERT_FILE", f"{certificate}.crt")  # trusted from here on
    assert download(f"{secure}/a.png") == photo()
    with pytest.raises(OSError, match="not valid for '93"):
        download(f"https://{PUBLIC}:{web.server_port}/a.png")
    with pytest.raises(OSError, match="private address"):
        download(f"https://inside.example:{web.server_port}/a.png")
    with pytest.raises(OSError, match="private address"):
        download(f"{secure}/to/https://127.0.0.1:PORT/a.png")
    assert [path for _, path in web.asked] == ["/a.png", "/to/https://127.0.0.1:PORT/a.png"]


def test_a_redirect_to_a_file_or_in_a_circle_is_refused(internet: str) -> None:
    with pytest.raises(OSError, match="no http or https address"):
        download(f"{internet}/to/file:///etc/passwd")
    with pytest.raises(OSError, match="more than 5 redirects"):
        download(f"{internet}/to/" + "/to/" * 9 + "a.png")


@pytest.mark.parametrize(
    ("path", "message"),
    [("none.jpg", "404"), ("page", "a web page"), ("cut", "ended after 10 of 1000 bytes")],
)
def test_what_is_no_photo_is_called_by_its_name(path: str, message: str, internet: str) -> None:
    with pytest.raises(OSError, match=f"{internet}/{path}: cannot read it as an image: .*{message}"):
        load_photo(f"{internet}/{path}")


def assert_given_up(url: str, **options: Any) -> None:
    """Half a second is the limit, and the thread that downloads does not stay behind."""
    begin = time.monotonic()
    with pytest.raises(OSError, match=r"no answer within 0\.5 s"):
        download(url, timeout=0.5, **options)
    assert time.monotonic() - begin < 1.5
    while downloading():
        assert time.monotonic() - begin < 10, "a thread still waits for the server"
        time.sleep(0.01)


def downloading() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "download"]


SLOW = ["hang", "drip", "drip-headers", "slow/" * 6]


@pytest.mark.parametrize("path", SLOW)
def test_a_server_that_hangs_or_drips_or_redirects_slowly_is_given_up_in_time(path: str, internet: str) -> None:
    assert_given_up(f"{internet}/{path}")


@pytest.mark.parametrize("path", SLOW)
def test_a_server_inside_is_given_up_in_time_too(path: str, web: Any) -> None:
    assert_given_up(f"http://127.0.0.1:{web.server_port}/{path}", allow_private=True)


@pytest.fixture
def dripping() -> Iterator[int]:
    """The port of a server that takes connections and answers TLS's greeting a byte at a time, each soon enough."""
    stop = threading.Event()

    def drip(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"\x16\x03\x03\x40\x00")  # a record of 16 KB follows
            while not stop.wait(0.1):
                try:
                    connection.sendall(b"\x02")
                except OSError:
                    break

    def serve() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listening.accept()
                threading.Thread(target=drip, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listening:
        threading.Thread(target=serve, daemon=True).start()
        yield listening.getsockname()[1]
        stop.set()
        listening.shutdown(socket.SHUT_RDWR)


def test_a_server_that_drips_while_tls_is_agreed_on_is_given_up_in_time(
    dripping: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"https://127.0.0.1:{dripping}/a.png"
    assert_given_up(url, allow_private=True)
    monkeypatch.setattr("nic_hf.download._public_addresses", lambda *at: [(2, 1, 6, "", ("127.0.0.1", dripping))])
    assert_given_up(url, allow_private=False)


def test_a_server_that_takes_a_connection_and_is_silent_is_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        for scheme in ("http", "https"):
            assert_given_up(f"{scheme}://127.0.0.1:{listening.getsockname()[1]}/a.png", allow_private=True)


def test_a_name_that_is_looked_up_for_ever_is_given_up_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    answered = threading.Event()

    def look_up(host: str, port: Any, *args: Any, **kwargs: Any) -> list:
        answered.wait(2)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (PUBLIC, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", None)  # too late for any
    assert_given_up("http://photos.example/a.png", allow_private=False)


def test_addresses_that_do_not_answer_share_the_time(monkeypatch: pytest.MonkeyPatch, internet: str, web: Any) -> None:
    """The last of them is tried before time is up."""
    waited: list[float] = []
    real = socket.create_connection

    def connect(address: tuple, timeout: float, *args: Any) -> socket.socket:
        if address[0] == "93.184.216.35":
            waited.append(timeout)
            time.sleep(timeout)
            raise TimeoutError
        return real(address, timeout, *args)

    def look_up(host: str, port: Any, *args: Any, **kwargs: Any) -> list:
        addresses = ["93.184.216.35", "93.184.216.35", PUBLIC] if host == "photos.example" else [host]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(socket, "create_connection", connect)
    assert download(f"{internet}/a.png", timeout=3) == photo()
    assert waited == pytest.approx([1, 1], abs=0.2)


def test_a_file_without_end_is_given_up(internet: str) -> None:
    with pytest.raises(OSError, match="more than 20 bytes"):
        download(f"{internet}/a.png", max_bytes=20)


def test_a_large_jpeg_is_decoded_at_a_fraction_of_its_size() -> None:
    stream = io.BytesIO()
    Image.linear_gradient("L").resize((1600, 1000)).convert("RGB").save(stream, "JPEG")
    full = load_photo(stream.getvalue())
    assert full.size == (1600, 1000)
    small = load_photo(stream.getvalue(), at_least=(200, 100))
    assert small.size == (800, 500)  # not 400 x 250: 250 is less than twice 200
    assert load_photo(stream.getvalue(), at_least=(600, 600)).size == (1600, 1000)
    difference = [
        abs(a - b) for a, b in zip(full.resize((100, 100)).tobytes(), small.resize((100, 100)).tobytes(), strict=True)
    ]
    assert max(difference) <= 3

"""Photos from the web: within a time and a size, and never from inside the network of who asks.

A service that fetches addresses which others type would otherwise hand out what only its own network may see (cloud
metadata, routers, databases): an address that is private, or that redirects to one, is refused unless it is allowed.
"""

import functools
import http.client
import ipaddress
import os
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

TIMEOUT = 30.0
MAX_BYTES = 200 * 2**20
MAX_REDIRECTS = 5
ALLOW_PRIVATE = "NIC_HF_ALLOW_PRIVATE_URLS"

_REDIRECTS = (301, 302, 303, 307, 308)
_BLOCK = 64 * 1024
_HEADERS = {"User-Agent": "nic_hf (+https://github.com/nic-hf/nic_hf)", "Accept": "image/*"}


def download(
    url: str, timeout: float | None = None, allow_private: bool | None = None, max_bytes: int = MAX_BYTES
) -> bytes:
    """Fetch a photo.

    Args:
        url: an `http` or `https` address.
        timeout: seconds for all of it, redirects included; 30 where not given.
        allow_private: fetch from loopback, private and link-local addresses too; where not given, as the environment
            variable `NIC_HF_ALLOW_PRIVATE_URLS` says ("1" allows them), by default not.
        max_bytes: give up on more.

    Returns:
        The file's bytes.

    Raises:
        OSError: the address is refused or cannot be reached, time or size runs out, or what comes is no photo.
    """
    if allow_private is None:
        allow_private = os.environ.get(ALLOW_PRIVATE, "") not in ("", "0")
    seconds = TIMEOUT if timeout is None else timeout
    deadline = time.monotonic() + seconds
    address = url
    for _ in range(MAX_REDIRECTS + 1):
        found = _fetch(address, deadline, seconds, allow_private, max_bytes)
        if isinstance(found, bytes):
            return found
        address = urljoin(address, found)
    raise OSError(f"more than {MAX_REDIRECTS} redirects")


def _fetch(url: str, deadline: float, seconds: float, allow_private: bool, max_bytes: int) -> bytes | str:
    """What an address gives, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OSError(f"{url} is no http or https address")
    connections: list[Any] = []
    opener = _opener(parts.scheme, parts.hostname, allow_private, connections)
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        for connection in connections:
            _abort(connection.live)

    left = deadline - time.monotonic()
    # A socket's own timeout starts again with every byte, which a server that drips never lets run out.
    watchdog = threading.Timer(max(left, 0), expire)
    watchdog.daemon = True
    watchdog.start()
    try:
        request = urllib.request.Request(url, headers=_HEADERS)
        with opener.open(request, timeout=max(left, 0.001)) as response:
            content = _photo(response, max_bytes)
            if expired.is_set():
                raise TimeoutError
            return content
    except urllib.error.HTTPError as error:
        with error:
            if error.code in _REDIRECTS and error.headers.get("Location"):
                return error.headers["Location"]
            raise OSError(f"the server answers {error.code} {error.reason}") from None
    except Exception as error:
        if expired.is_set() or isinstance(_reason(error), TimeoutError):
            raise OSError(f"no answer within {seconds:g} s") from None
        if isinstance(error, (OSError, http.client.HTTPException)):
            raise OSError(f"cannot be downloaded: {_reason(error)}") from None
        raise
    finally:
        watchdog.cancel()


def _reason(error: Exception) -> Any:
    return error.reason if isinstance(error, urllib.error.URLError) else error


def _photo(response: Any, max_bytes: int) -> bytes:
    kind = response.headers.get_content_type()
    if kind in ("text/html", "application/xhtml+xml"):
        raise OSError(f"it is a web page ({kind}), not a photo")
    blocks, size = [], 0
    while block := response.read(_BLOCK):
        size += len(block)
        if size > max_bytes:
            raise OSError(f"it has more than {max_bytes:,} bytes")
        blocks.append(block)
    announced = response.headers.get("Content-Length")
    if announced is not None and announced.isdigit() and size < int(announced):
        raise OSError(f"the connection ended after {size:,} of {announced} bytes")
    return b"".join(blocks)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Redirects are followed one by one, each checked as the first address was."""

    def redirect_request(self, *args: Any) -> None:
        return None


def _opener(scheme: str, host: str, allow_private: bool, connections: list[Any]) -> Any:
    proxied = scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    if proxied and not allow_private:
        # The proxy looks names up, and is itself on a private address. What is known here is checked all the same.
        with suppress(socket.gaierror):
            _public_addresses(host, None)
    checked = not (allow_private or proxied)

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: Any) -> Any:
            return self.do_open(functools.partial(_HTTP, checked, connections), request)

    class Encrypted(urllib.request.HTTPSHandler):
        def https_open(self, request: Any) -> Any:
            return self.do_open(functools.partial(_HTTPS, checked, connections), request)

    return urllib.request.build_opener(Plain, Encrypted, _NoRedirects)


def _public_addresses(host: str, port: int | None) -> list[tuple]:
    """Where a host lives, if all of its addresses are public.

    Raises:
        OSError: one of them is not.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    for *_, address in found:
        number = ipaddress.ip_address(str(address[0]).partition("%")[0])
        inner = getattr(number, "ipv4_mapped", None) or getattr(number, "sixtofour", None) or number
        if not (number.is_global and inner.is_global) or number.is_multicast:
            raise OSError(f"{host} is the private address {number}, which is refused; {ALLOW_PRIVATE}=1 allows it")
    return found


def _connect_to_public(host: str, port: int, timeout: float | None) -> socket.socket:
    """Connect to the very address that was checked: a second look at the name could find another."""
    failed: OSError | None = None
    for *_, address in _public_addresses(host, port):
        try:
            return socket.create_connection(address[:2], timeout)
        except OSError as error:
            failed = error
    raise failed or OSError(f"{host} has no address")


def _abort(live: socket.socket | None) -> None:
    """End a connection from another thread, whatever it waits for."""
    with suppress(OSError):  # it has ended
        if live is not None:
            socket.socket.shutdown(live, socket.SHUT_RDWR)


class _HTTP(http.client.HTTPConnection):
    live: socket.socket | None = None

    def __init__(self, checked: bool, connections: list[Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.checked = checked
        connections.append(self)

    def connect(self) -> None:
        if self.checked:
            self.sock = _connect_to_public(self.host, self.port, self.timeout)
        else:
            super().connect()
        self.live = self.sock


class _HTTPS(http.client.HTTPSConnection):
    live: socket.socket | None = None

    def __init__(self, checked: bool, connections: list[Any], *args: Any, **kwargs: Any) -> None:
        context = ssl.create_default_context()
        super().__init__(*args, context=context, **kwargs)
        self.checked, self.context = checked, context
        connections.append(self)

    def connect(self) -> None:
        if self.checked:
            raw = _connect_to_public(self.host, self.port, self.timeout)
            self.sock = self.context.wrap_socket(raw, server_hostname=self.host)
        else:
            super().connect()
        self.live = self.sock

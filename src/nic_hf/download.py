"""Download photos, with limits of time and size, and never from a private network.

A service that downloads URLs of its users would otherwise expose its own network (cloud metadata, routers, databases):
an address that is private, or that redirects to one, is refused unless it is allowed.

safehttpx, which Gradio uses, checks addresses too, but has no limit of size or of the whole time, follows no redirects
and asks a public name server if the system's finds no public address, so it is not used here.
"""

import functools
import http.client
import ipaddress
import os
import queue
import socket
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from urllib.parse import urljoin, urlsplit

TIMEOUT = 30.0
MAX_BYTES = 200 * 2**20
MAX_REDIRECTS = 5
ALLOW_PRIVATE = "NIC_HF_ALLOW_PRIVATE_URLS"

_REDIRECTS = (301, 302, 303, 307, 308)
_BLOCK = 64 * 1024
_UNICAST = ipaddress.ip_network("2000::/3")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_HEADERS = {"User-Agent": "nic_hf (+https://github.com/nic-hf/nic_hf)", "Accept": "image/*"}


def download(
    url: str, timeout: float | None = None, allow_private: bool | None = None, max_bytes: int = MAX_BYTES
) -> bytes:
    """Fetch a photo.

    Args:
        url: an `http` or `https` address.
        timeout: limit in seconds, from name resolution to the last byte, redirects included; 30 by default.
        allow_private: allow loopback, private and link-local addresses. Defaults to the environment variable
            `NIC_HF_ALLOW_PRIVATE_URLS` ("1" allows them).
        max_bytes: largest size.

    Returns:
        The file's bytes.

    Raises:
        OSError: the address is refused or cannot be reached, time or size runs out, or what comes is no photo.
    """
    if allow_private is None:
        allow_private = os.environ.get(ALLOW_PRIVATE, "") not in ("", "0")
    seconds = TIMEOUT if timeout is None else timeout
    clock = _Clock(seconds)
    done: queue.SimpleQueue[bytes | BaseException] = queue.SimpleQueue()

    def work() -> None:
        try:
            done.put(_follow(url, clock, allow_private, max_bytes))
        except BaseException as error:
            done.put(error)

    # A thread of its own, which is left to itself when time is up: looking a name up cannot be broken off, and a
    # socket's own timeout starts again with every byte, which a server that drips never lets run out.
    threading.Thread(target=work, name="download", daemon=True).start()
    try:
        found = done.get(timeout=max(seconds, 0))
    except queue.Empty:
        found = TimeoutError()
    finally:
        clock.end()
    if isinstance(found, bytes):
        return found
    try:
        raise OSError(f"no answer within {seconds:g} s") if isinstance(found, TimeoutError) else found
    finally:
        del found  # it would hold this frame, which holds it


def without_secrets(url: str) -> str:
    """An address as messages may show it: without user name and password, and without the values of its query.

    Addresses that are signed for one download carry the signature there.
    """
    address, fragment, _ = url.partition("#")
    address, asked, query = address.partition("?")
    scheme, slashes, rest = address.partition("://")
    host, slash, path = rest.partition("/")
    if "@" in host:
        host = "***@" + host.rpartition("@")[2]
    hidden = "&".join(f"{part.partition('=')[0]}=***" if "=" in part else "***" for part in query.split("&"))
    return f"{scheme}{slashes}{host}{slash}{path}{asked}{hidden if asked else ''}{fragment and '#***'}"


class _Clock:
    """The time that a download has, and its connections, which end with it."""

    def __init__(self, seconds: float) -> None:
        self._deadline = time.monotonic() + seconds
        self._connections: list[socket.socket] = []
        self._lock = threading.Lock()

    def left(self) -> float:
        """Seconds.

        Raises:
            TimeoutError: there are none.
        """
        left = self._deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def watch(self, connection: socket.socket) -> socket.socket:
        """End a connection when the download ends. A copy of it is kept, since TLS takes the socket itself away."""
        with self._lock:
            try:
                self.left()
            except TimeoutError:
                connection.close()
                raise
            self._connections.append(connection.dup())
        return connection

    def end(self) -> None:
        """End all connections, whatever the thread of the download waits for."""
        with self._lock:
            self._deadline = 0.0
            for connection in self._connections:
                with connection, suppress(OSError):  # it has ended
                    connection.shutdown(socket.SHUT_RDWR)


def _follow(url: str, clock: _Clock, allow_private: bool, max_bytes: int) -> bytes:
    for _ in range(MAX_REDIRECTS + 1):
        found = _fetch(url, clock, allow_private, max_bytes)
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise OSError(f"more than {MAX_REDIRECTS} redirects")


def _fetch(url: str, clock: _Clock, allow_private: bool, max_bytes: int) -> bytes | str:
    """What an address gives, or where it redirects to."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise OSError(f"{without_secrets(url)} is no http or https address")
    if parts.username is not None or parts.password is not None:
        raise OSError("the address has a user name or a password in it, which is refused")
    opener = _opener(parts.scheme, parts.hostname, allow_private, clock)
    try:
        request = urllib.request.Request(url, headers=_HEADERS)
        with opener.open(request, timeout=clock.left()) as response:
            return _photo(response, max_bytes)
    except urllib.error.HTTPError as error:
        with error:
            if error.code in _REDIRECTS and error.headers.get("Location"):
                return error.headers["Location"]
            raise OSError(f"the server answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = _reason(error)
        if isinstance(reason, TimeoutError):
            raise reason from None
        raise OSError(f"cannot be downloaded: {reason}") from None


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


def _opener(scheme: str, host: str, allow_private: bool, clock: _Clock) -> Any:
    proxied = scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host)
    if proxied and not allow_private:
        # The proxy looks names up, and is itself on a private address. What is known here is checked all the same.
        with suppress(socket.gaierror):
            _public_addresses(host, None)

    def connect(host: str, port: int) -> socket.socket:
        return _connect(host, port, clock, checked=not (allow_private or proxied))

    class Plain(urllib.request.HTTPHandler):
        def http_open(self, request: Any) -> Any:
            return self.do_open(functools.partial(_HTTP, connect), request)

    class Encrypted(urllib.request.HTTPSHandler):
        def https_open(self, request: Any) -> Any:
            return self.do_open(functools.partial(_HTTPS, connect), request)

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
        if number in _NAT64:  # a gateway turns it into the IPv4 address in its last 32 bits
            inner = ipaddress.IPv4Address(int(number) & 0xFFFFFFFF)
        elif number.version == 6 and inner is number and number not in _UNICAST:
            # Python calls some others global, such as ::127.0.0.1 and fec0::1; none of them is on the web.
            inner = ipaddress.IPv6Address(1)
        if not (number.is_global and inner.is_global) or number.is_multicast:
            raise OSError(f"{host} is the private address {number}, which is refused; {ALLOW_PRIVATE}=1 allows it")
    return found


def _connect(host: str, port: int, clock: _Clock, checked: bool) -> socket.socket:
    """Connect to one of the very addresses that were checked: a second look at the name could find another.

    Each address has its share of the time that is left, so that one that does not answer leaves some to the next.
    """
    found = [address[:2] for *_, address in _public_addresses(host, port)] if checked else [(host, port)]
    failed: OSError | None = None
    for number, address in enumerate(found):
        try:
            connection = socket.create_connection(address, clock.left() / (len(found) - number))
        except OSError as error:
            clock.left()
            failed = error
        else:
            connection.settimeout(clock.left())
            return clock.watch(connection)
    raise failed or OSError(f"{host} has no address")


class _HTTP(http.client.HTTPConnection):
    def __init__(self, connect: Callable[[str, int], socket.socket], *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._connect = connect

    def connect(self) -> None:
        self.sock = self._connect(self.host, self.port)


class _HTTPS(http.client.HTTPSConnection):
    def __init__(self, connect: Callable[[str, int], socket.socket], *args: Any, **kwargs: Any) -> None:
        self.context = ssl.create_default_context()
        super().__init__(*args, context=self.context, **kwargs)
        self._connect, self._tunnelled = connect, False

    def set_tunnel(self, *args: Any, **kwargs: Any) -> None:
        super().set_tunnel(*args, **kwargs)
        self._tunnelled = True

    def connect(self) -> None:
        if self._tunnelled:  # through a proxy, which the user named
            super().connect()
        else:
            self.sock = self.context.wrap_socket(self._connect(self.host, self.port), server_hostname=self.host)

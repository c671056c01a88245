"""Check where the app is to listen, before anything is loaded."""

import os
import socket


def check_address(host: str | None = None, port: int | None = None) -> None:
    """Refuse an address or a port that cannot be listened on.

    Args:
        host: as for [`serve`].
        port: as for [`serve`]; without one, gradio looks for a free one itself.

    Raises:
        OSError: naming them.
        ValueError: `GRADIO_SERVER_PORT` is no number.
    """
    host = host or os.environ.get("GRADIO_SERVER_NAME") or "127.0.0.1"
    given = os.environ.get("GRADIO_SERVER_PORT") if port is None else port
    if given is not None and not str(given).isdecimal():
        raise ValueError(f"GRADIO_SERVER_PORT is {given!r}; it must be a number")
    number = 0 if given is None else int(given)  # 0: any free port, to check the host alone
    if number > 65535:
        raise ValueError(f"port {number}: the highest is 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, number, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as taken:
            if os.name == "posix":  # elsewhere it would take over a port in use
                taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            taken.bind(address)
    except OSError as error:
        where = f"port {number} of {host}" if number else host
        raise OSError(
            f"cannot listen on {where}: {error.strerror or error}; choose another {'--port' if number else '--host'}"
        ) from error

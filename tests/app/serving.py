"""The app as its own process, the way users start it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, NamedTuple

import nic_hf

SOURCE = Path(nic_hf.__file__).parents[1]


class Server(NamedTuple):
    url: str
    process: subprocess.Popen


@contextmanager
def serving(command: list[str], temporary: Path, log: IO[str] | None = None, **environment: str) -> Iterator[Server]:
    """An app with a folder of its own for temporary files, which holds none when it has ended.

    What it writes on standard error goes to `log`.
    """
    variables = {
        **{name: value for name, value in os.environ.items() if not name.startswith("GRADIO_")},
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
        **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary)),
        **environment,
    }
    process = subprocess.Popen(
        [sys.executable, *command], stdout=subprocess.PIPE, stderr=log, text=True, env=variables
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("Captions at http://127.0.0.1:"), line
        yield Server(line.split()[2], process)
        if os.name == "posix":
            process.send_signal(signal.SIGTERM)
            assert process.wait(300) == 0  # on a machine under load
            assert [path for path in temporary.rglob("*") if path.is_file()] == []
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

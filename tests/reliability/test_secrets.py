"""Tokens and signatures: in no message, no log and no file that was not asked to hold them."""

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import save_tiny_checkpoint, tiny_photos

import nic_hf
from nic_hf.download import ALLOW_PRIVATE, download, without_secrets
from nic_hf.images import load_photo

SECRET = "hf_ThisIsNoRealTokenButMustNotBeSeen"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://host/a.jpg", "https://host/a.jpg"),
        (f"https://me:{SECRET}@host:8/a.jpg", "https://***@host:8/a.jpg"),
        (f"https://{SECRET}@host", "https://***@host"),
        (f"https://host/a.jpg?id=3&X-Amz-Signature={SECRET}", "https://host/a.jpg?id=***&X-Amz-Signature=***"),
        (f"https://host/a.jpg?{SECRET}#{SECRET}", "https://host/a.jpg?***#***"),
        (f"https://host/a@b.jpg?x=a/{SECRET}?y={SECRET}", "https://host/a@b.jpg?x=***"),
    ],
)
def test_what_messages_show_of_an_address(address: str, shown: str) -> None:
    assert without_secrets(address) == shown


@pytest.mark.parametrize(
    "address",
    [
        f"http://me:{SECRET}@127.0.0.1:9/a.jpg",
        f"http://127.0.0.1:9/a.jpg?token={SECRET}",
        f"http://10.0.0.1/a.jpg?token={SECRET}",
        f"http://[::1/a.jpg?token={SECRET}",
    ],
)
def test_no_error_shows_a_secret(
    address: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(ALLOW_PRIVATE, "1" if "127" in address else "0")
    caplog.set_level(logging.DEBUG)
    with pytest.raises(OSError) as caught:
        load_photo(address, timeout=2)
    assert SECRET not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    "host",
    [
        "[64:ff9b::7f00:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[::127.0.0.1]",
        "[fec0::1]",
        "[64:ff9b:1::a00:1]",
        "[2002:7f00:1::]",
    ],
)
def test_ipv6_addresses_that_lead_to_private_ones_are_refused(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ALLOW_PRIVATE, raising=False)
    with pytest.raises(OSError, match="private address"):
        download(f"http://{host}:9/")


def test_a_file_address_opens_no_file(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    tiny_photos(1)[0].save(photo)
    for address in (photo.as_uri(), f"FILE://{photo}", f"http:{photo}", f"ftp://localhost{photo}"):
        with pytest.raises(OSError):
            load_photo(address, timeout=2)


def test_a_token_in_the_environment_goes_nowhere(tmp_path: Path) -> None:
    save_tiny_checkpoint(tmp_path / "checkpoint")
    tiny_photos(1)[0].save(tmp_path / "photo.png")
    (tmp_path / "list.txt").write_text(f"{tmp_path}/photo.png\nhttp://127.0.0.1:9/a.png?token={SECRET}\n", "utf-8")
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(nic_hf.__file__).parents[1]),
        "HF_TOKEN": SECRET + "A",
        "HF_HOME": str(tmp_path / "home"),
        "TRANSFORMERS_VERBOSITY": "debug",
        "HF_HUB_OFFLINE": "1",
    }
    arguments = ["--model", "checkpoint", "--output", "captions.csv", "--list", "list.txt"]
    command = [sys.executable, "-m", "nic_hf", "caption", *arguments]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "http://127.0.0.1:9/a.png?token=***: " in done.stderr
    assert SECRET not in done.stdout + done.stderr
    assert SECRET not in (tmp_path / "captions.csv").read_text("utf-8")
    found = [file for file in tmp_path.rglob("*") if file.is_file() and (SECRET + "A").encode() in file.read_bytes()]
    assert found == []

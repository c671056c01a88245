"""What all commands share: help to learn from, completion, exit codes, bars for people and quiet for programs."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import typer
from tiny import save_tiny_checkpoint, tiny_photos
from typer.main import get_command
from typer.testing import CliRunner

import nic_hf
from nic_hf.cli import app
from nic_hf.cli.grouped_help import GROUPS
from nic_hf.cli.terminal import reported

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(nic_hf.__file__).parents[1])}
BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
COMMANDS = ["caption", "app", "train", "evaluate", "calibrate", "doctor", "push", "card", "demo", "export onnx"]


def command_of(name: str) -> typer.core.TyperCommand:
    command = get_command(app)
    for part in name.split():
        command = command.commands[part]  # type: ignore[attr-defined]
    return command


def test_all_commands_are_listed_in_the_order_of_their_use() -> None:
    done = CliRunner().invoke(app, ["--help"])
    listed = re.findall(r"^  (\w+)  +\w", done.stdout.split("Commands:\n")[1], re.MULTILINE)
    assert listed == [name.split()[0] for name in COMMANDS]
    assert "..." not in done.stdout.split("Commands:\n")[1], "what a command does is cut off"


@pytest.mark.parametrize("name", COMMANDS)
def test_help_reads_like_a_manual_page(name: str) -> None:
    """What it does, how it ends, what every option means, examples that can be copied and are understood."""
    done = CliRunner().invoke(app, [*name.split(), "--help"], prog_name="nic")
    assert done.exit_code == 0
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert re.search(r"Exit\s+code: 0\b", done.stdout)
    command = command_of(name)
    assert all(getattr(option, "help", None) for option in command.params)
    text = re.split(r"^  Examples?:\n", done.stdout, flags=re.MULTILINE)[1].split("\n\n")[0]
    examples = [line for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    assert examples
    for example in examples:
        words = shlex.split(example.split("|")[-1])
        assert words[: 1 + len(name.split())] == ["nic", *name.split()], example
        command.make_context(name, words[1 + len(name.split()) :])  # raises where it does not understand


def test_the_version_is_said() -> None:
    assert CliRunner().invoke(app, ["--version"]).stdout == f"nic_hf {nic_hf.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("nic ca", ["caption", "calibrate", "card"]), ("nic caption --num-", ["--num-captions", "--num-beams"])],
)
def test_the_shell_completes_commands_and_options(typed: str, offered: list[str]) -> None:
    words = {"_NIC_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    command = [sys.executable, "-c", "from nic_hf.cli import app; app(prog_name='nic')"]
    done = subprocess.run(command, env={**ENVIRONMENT, **words}, capture_output=True, text=True, timeout=60)
    assert done.stdout.split() == offered, done.stderr


def test_a_completion_script_is_shown_for_the_shell() -> None:
    shell = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    command = [sys.executable, "-c", "from nic_hf.cli import app; app(['--show-completion', 'bash'], prog_name='nic')"]
    done = subprocess.run(command, env={**ENVIRONMENT, **shell}, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "complete -o default -F _nic_completion nic" in done.stdout, done.stderr
    assert subprocess.run(["bash", "-n"], input=done.stdout, text=True).returncode == 0


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ValueError("--beams is 'x';\n  it must be numbers"), 2, "--beams is 'x'; it must be numbers"),
        (FileNotFoundError(2, "No such file or directory", "a.json"), 2, "a.json: No such file or directory"),
        (OSError(28, "No space left on device"), 2, "No space left on device"),
        (ImportError("needs gradio"), 2, "needs gradio"),
        (KeyboardInterrupt(), 130, "stopped; the same command goes on"),
    ],
)
def test_every_end_is_a_line_and_an_exit_code(
    error: BaseException, code: int, line: str, capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(typer.Exit) as ended, reported("evaluate", "stopped; the same command goes on"):
        raise error
    assert ended.value.exit_code == code
    assert capsys.readouterr() == ("", f"nic evaluate: {line}\n")


def test_a_mistake_in_the_program_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), reported("train"):
        raise ZeroDivisionError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A captioner, and so many photos that to caption them takes some seconds."""
    folder = tmp_path_factory.mktemp("terminal")
    save_tiny_checkpoint(folder / "captioner")
    (folder / "photos").mkdir()
    for number, photo in enumerate(tiny_photos(50, seed=5, size=(8, 8))):
        for copy in range(6):
            photo.save(folder / "photos" / f"{number:03d}-{copy}.png")
    return folder


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no pseudo-terminals")
def test_a_bar_with_rate_and_time_left_on_a_terminal_and_none_in_a_file(folder: Path) -> None:
    import pty
    import termios

    command = [sys.executable, "-m", "nic_hf", "caption", "photos", "--model", "captioner"]
    bars = {name: value for name, value in ENVIRONMENT.items() if name not in BARS}
    terminal, end = pty.openpty()
    termios.tcsetwinsize(end, (24, 100))
    slow = [*command, "--output", "a.jsonl", "--batch-size", "1"]
    on_terminal = subprocess.Popen(slow, env=bars, cwd=folder, stderr=end)
    os.close(end)
    shown = b""
    with suppress(OSError):  # Linux's way to say that nobody writes any more
        while block := os.read(terminal, 65536):
            shown += block
    assert on_terminal.wait(120) == 0
    assert re.search(rb"Captioning: +\d+%\|.*\| \d+/300 \[\d\d:\d\d<\d\d:\d\d, +[\d.]+photo/s\]", shown), shown[-2000:]
    in_file = subprocess.run([*command, "--output", "b.jsonl"], env=bars, cwd=folder, capture_output=True, timeout=120)
    assert in_file.returncode == 0 and in_file.stdout == b""
    assert re.fullmatch(rb"b.jsonl: 300 photos captioned(, [\d.]+ per second)?\n", in_file.stderr), in_file.stderr


def test_json_is_all_that_machines_read(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="exporting needs onnxscript")
    done = CliRunner().invoke(app, ["export", "onnx", str(folder / "captioner"), str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["folder"] == str(tmp_path / "out") and document["precision"] == "float32"
    assert document["bytes"] == sum(file.stat().st_size for file in (tmp_path / "out").iterdir())


def test_a_hub_id_that_cannot_be_reached_is_said_once_and_soon(tmp_path: Path) -> None:
    start = time.monotonic()
    done = CliRunner().invoke(app, ["doctor", "someone/nothing"])
    assert done.exit_code == 2 and done.stdout == "" and "someone/nothing" in done.stderr
    assert time.monotonic() - start < 20


@pytest.mark.parametrize("name", GROUPS)
def test_options_are_in_groups(name: str) -> None:
    """Each option is in one place, and what is in no group is little."""
    command = command_of(name)
    text = CliRunner().invoke(app, [name, "--help"]).stdout
    titles = re.findall(r"^(\S.*):$", text, re.MULTILINE)
    assert titles == ["Arguments", "Options", *GROUPS[name]]
    names = [option for options in GROUPS[name].values() for option in options]
    assert len(names) == len(set(names)) and set(names) <= {option.name for option in command.params}
    options = [option for option in command.params if option.param_type_name == "option"]
    assert len(options) - len(names) <= 5
    for option in options:
        assert len(re.findall(rf"^  (?:--\S+, )?{option.opts[-1]}(?=[ \n])", text, re.MULTILINE)) == 1, option.opts

"""Runs the code blocks of a page of the documentation, in order, in the folder where it is started.

    python tests/docs_page.py docs/training.md [--slow]

Python blocks of a page share their names, as if typed into one session. Of `bash` blocks, lines that begin with `nic`
run in this process, which spares importing torch for each, and other lines in bash. Comments above a block say how it
is run; they are seen in the page's source, and `test_docs.py` lists them:

    <!-- skip-test: REASON -->          not at all
    <!-- slow-test: REASON -->          by `make test-slow` only
    <!-- test-exit: 0 1 -->             one of these exit codes is right, in place of 0 only

A block that is run with other values than printed says so on the page, in a line of its own below it:

    *Tested with `OPTIONS` added.*                        at the end of each command
    *Tested with `NEW` in place of `OLD`, `...` ....*

An invisible block (`<!-- invisible-code-block: python ... -->`) prepares what the page takes for granted.
"""

import json
import re
import shlex
import subprocess
import sys
import traceback
from pathlib import Path
from typing import Any

from sybil import Example, Lexeme, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

MARK = re.compile(r"<!-- (skip-test|slow-test|test-exit): (.+?) -->")
MARKS_ABOVE = re.compile(rf"(?:{MARK.pattern}\s*)+\Z")
NOTE = re.compile(r"\s*^\*Tested with ([^*]+)\.\*$", re.MULTILINE)
CHANGE = re.compile(r"`([^`]+)`\s+(?:added|in\s+place\s+of\s+`([^`]+)`)")
RUN = {"python", "bash", "yaml", "json"}
TEXT = {"text", "math", "bibtex"}  # what nobody could run
SHELL = re.compile(r"[|<>;&$`]|^(?!nic )")


def marks(text: str, start: int) -> dict[str, list[str]]:
    """What the comments above the block that begins at `start` say."""
    found: dict[str, list[str]] = {}
    above = MARKS_ABOVE.search(text, 0, start)
    for kind, value in MARK.findall(above[0]) if above else []:
        found.setdefault(kind, []).append(value)
    return found


def changes(text: str, end: int) -> list[tuple[str, str]]:
    """What the note below the block that ends at `end` says: what is tested, and in place of what ("" if added)."""
    note = NOTE.match(text, end)
    if note is None:
        return []
    assert not CHANGE.sub("", note[1]).strip(", \n"), f"cannot read the note: {note[0]}"
    return CHANGE.findall(note[1])


def commands(source: str) -> list[str]:
    """The commands of a block, without comments; lines that end in a backslash go on."""
    lines = re.sub(r"\\\n\s*", "", source).splitlines()
    return [line for line in map(str.strip, lines) if line and not line.startswith("#")]


def run_command(command: str, append: str, exits: set[int]) -> None:
    """Run it as a user would.

    Raises:
        AssertionError: where it ends with another exit code.
    """
    command = re.sub(r"\s+# .*", "", command) + (f" {append}" if append else "")
    print("$", command, flush=True)
    if SHELL.search(command):
        code = subprocess.run(["bash", "-eo", "pipefail", "-c", command], timeout=500).returncode
        output = ""
    else:
        from typer.testing import CliRunner

        from nic_hf.cli import app

        result = CliRunner().invoke(app, shlex.split(command)[1:], prog_name="nic")
        code, output = result.exit_code, result.output
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            output += "".join(traceback.format_exception(result.exception))
        print(output, flush=True)
    assert code in exits, f"exit code {code} of: {command}\n{output}"


class Page:
    """The evaluators of a page's blocks."""

    def __init__(self, slow: bool) -> None:
        self.slow, self.counts = slow, {"run": 0, "left out": 0}
        parsers = [CodeBlockParser(language, getattr(self, language)) for language in sorted(RUN)]
        self.sybil = Sybil(parsers=parsers)

    def run(self, path: Path) -> None:
        """Run all blocks; the first that fails ends it."""
        for example in self.sybil.parse(path).examples():
            notes = marks(example.document.text, example.start)
            if "skip-test" in notes or ("slow-test" in notes and not self.slow):
                self.counts["left out"] += 1
                continue
            for new, old in changes(example.document.text, example.end):
                assert old in str(example.parsed), f"{path}:{example.line}: there is no {old!r} to replace"
                parsed = example.parsed
                if old:
                    example.parsed = Lexeme(parsed.replace(old, new), parsed.offset, parsed.line_offset)
            print(f"--- {path.name}:{example.line}", flush=True)
            example.evaluate()
            self.counts["run"] += 1

    def python(self, example: Example) -> Any:
        return PythonEvaluator()(example)

    def bash(self, example: Example) -> None:
        text = example.document.text
        notes = marks(text, example.start)
        append = " ".join(new for new, old in changes(text, example.end) if not old)
        exits = {int(code) for value in notes.get("test-exit", ["0"]) for code in value.split()}
        for command in commands(str(example.parsed)):
            run_command(command, append, exits)

    def yaml(self, example: Example) -> None:
        """The YAML of these pages is recipes."""
        from nic_hf.training.recipes import load_recipe, resolve

        Path("recipe-of-the-page.yaml").write_text(example.parsed, encoding="utf-8")
        recipe = load_recipe("recipe-of-the-page.yaml")
        resolve(recipe, {"data": "flickr8k", "backbone": "google/mobilenet_v2_1.0_224"})

    def json(self, example: Example) -> None:
        json.loads(example.parsed)


if __name__ == "__main__":
    page = Page(slow="--slow" in sys.argv)
    page.run(Path(sys.argv[1]).resolve())
    print(json.dumps(page.counts))

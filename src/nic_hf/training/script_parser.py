"""Command lines of training scripts, with a help that can be read."""

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from transformers import HfArgumentParser, TrainingArguments

from .arguments import CaptioningTrainingArguments


class ScriptParser(HfArgumentParser):
    """`HfArgumentParser` whose `--help` leaves out Trainer's options; `--help_all` shows them.

    Shown are options of the script, and training arguments of this package or with other defaults than Trainer's.

    Args:
        *args, **kwargs: as for `HfArgumentParser`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._added: list[argparse.Action] = []
        super().__init__(*args, **kwargs)
        self._added.append(self.add_argument("--help_all", action=_HelpAll, help="Show Trainer's options too."))

    def add_argument(self, *args: Any, **kwargs: Any) -> argparse.Action:
        """Add an option, as in argparse."""
        action = super().add_argument(*args, **kwargs)
        self._added.append(action)
        return action

    def format_help(self, shows_all: bool = False) -> str:
        """Format the help; `shows_all` includes all of Trainer's options."""
        of_trainer = {field.name for field in dataclasses.fields(TrainingArguments)}
        hidden = set() if shows_all else of_trainer - CaptioningTrainingArguments.__annotations__.keys()
        before = [(action, action.help) for action in self._added if action.dest.removeprefix("no_") in hidden]
        usage, self.usage = self.usage, f"{self.prog} --OPTION VALUE ..."
        epilog, self.epilog = self.epilog, None if shows_all else "--help_all also shows Trainer's other options."
        for action, _ in before:
            action.help = argparse.SUPPRESS
        try:
            return super().format_help()
        finally:
            self.usage, self.epilog = usage, epilog
            for action, text in before:
                action.help = text


class _HelpAll(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str, **kwargs: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, default=argparse.SUPPRESS, help=kwargs["help"])

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        assert isinstance(parser, ScriptParser)
        sys.stdout.write(parser.format_help(shows_all=True))
        parser.exit()

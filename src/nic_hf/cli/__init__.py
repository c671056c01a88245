"""The command `nic`: thin, each command calls one function of the toolkit.

Commands import what they need when they run: `nic --help` should not wait for torch.
"""

from typing import Annotated

import typer

from .._version import __version__
from ..malloc_settings import keep_freed_memory
from ..photo_warnings import name_photos_in_warnings
from .app import app as app_command
from .caption import caption
from .card import card
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .push import push
from .terminal import keep_bars_off_files
from .train import SETTINGS, train

app = typer.Typer(
    name="nic",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all else that help needs
)


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nic_hf {__version__}")
        raise typer.Exit


@app.callback()
def _before_each_command(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """Show and Tell: train small image captioners, and caption photos with them.

    \b
    Examples:
      nic demo                                     # see what it does, in minutes
      nic train --data flickr8k \\
          --backbone google/mobilenet_v2_1.0_224 \\
          --output_dir runs/flickr8k
      nic caption photo.jpg --model runs/flickr8k

    nic COMMAND --help has examples of each command. Results go to standard output (with --json for programs), bars
    and remarks to standard error, bars on terminals only.

    Exit code: 0, 1 where some of the work could not be done, 2 where none could, 130 after Ctrl-C, which leaves whole
    files.
    """
    keep_freed_memory()
    keep_bars_off_files()
    name_photos_in_warnings()


app.command()(demo)
app.command(context_settings=SETTINGS)(train)
app.command()(caption)
app.command()(evaluate)
app.command()(doctor)
app.command("app")(app_command)
app.command()(card)
app.command()(push)
app.add_typer(export)

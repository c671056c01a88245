"""The command `nic`: each subcommand calls a function of the package.

Commands import torch and Transformers only when they run, so that `nic --help` is fast.
"""

from typing import Annotated

import typer

from .._version import __version__
from ..malloc_settings import keep_freed_memory
from ..photo_warnings import name_photos_in_warnings
from .app import app as app_command
from .calibrate import calibrate
from .caption import caption
from .card import card
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .grouped_help import GroupedCommand
from .push import push
from .terminal import keep_bars_off_files
from .train import SETTINGS, train

app = typer.Typer(
    name="nic",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # importing rich would take longer than everything else
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
    """Show and Tell: caption photos, and train small image captioners.

    \b
    Examples:
      nic caption photo.jpg
      nic app --open
      nic train --data flickr8k --from_checkpoint flickr8k
      nic train --data flickr8k \\
          --backbone google/mobilenet_v2_1.0_224

    See nic COMMAND --help for examples. Results are written to standard output (as JSON with --json), progress bars
    and messages to standard error. Where that is no terminal, a line every half minute stands for a bar
    (NIC_HF_PROGRESS_SECONDS=10: every ten seconds; 0: none).

    Exit code: 0 on success, 1 if some of the work failed, 2 if all of it failed, 130 after Ctrl-C. Files are never
    left half-written.
    """
    keep_freed_memory()
    keep_bars_off_files()
    name_photos_in_warnings()


app.command(cls=GroupedCommand)(caption)
app.command("app")(app_command)
app.command(context_settings=SETTINGS)(train)
app.command(cls=GroupedCommand)(evaluate)
app.command(cls=GroupedCommand)(calibrate)
app.command(cls=GroupedCommand)(doctor)
app.add_typer(export)
app.command()(push)
app.command()(card)
app.command()(demo)

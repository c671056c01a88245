"""The command `nic`: thin, each command calls one function of the toolkit.

Commands import what they need when they run: `nic --help` should not wait for torch.
"""

import typer

from ..memory import keep_freed_memory
from .app import app as app_command
from .caption import caption
from .demo import demo
from .doctor import doctor
from .evaluate import evaluate
from .export import export
from .hub import card, push
from .train import SETTINGS, train

app = typer.Typer(
    name="nic",
    help="Show and Tell: train small image captioners, and caption photos with them.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich takes longer to import than all else that help needs
)


@app.callback()
def _before_each_command() -> None:
    keep_freed_memory()


app.command("app")(app_command)
app.command()(caption)
app.command()(demo)
app.command()(doctor)
app.command()(evaluate)
app.command()(card)
app.command()(push)
app.add_typer(export)
app.command(context_settings=SETTINGS)(train)

"""`nic app`."""

from typing import Annotated

import typer

from .terminal import reported, silence_transformers


def app(
    model: Annotated[str, typer.Argument(help="A captioner: a folder or a Hub id.", metavar="MODEL")],
    host: Annotated[
        str | None, typer.Option(help="Address to listen at; 0.0.0.0 lets others in.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen at.", show_default="first free from 7860")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default="a GPU where there is one")] = None,
    max_upload: Annotated[int, typer.Option(help="Megabytes of the largest photo that is taken.", min=1)] = 20,
    open_browser: Annotated[bool, typer.Option("--open", help="Show the page in the browser.")] = False,
) -> None:
    """Caption photos in the browser.

    Drop a photo or take one: captions with their probabilities, and where the captioner looked for each word. A second
    tab captions many photos into a file. Only this machine can reach it unless --host says otherwise; photos are
    deleted after ten minutes, and all of them when it ends.

    Exit code: 0, 2 where nothing could be done.

    \b
    Examples:
      nic app runs/flickr8k --open
      nic app me/flickr8k-captioner --host 0.0.0.0 --port 8000
    """
    with reported("app"):
        from ..app import check_gradio, serve

        check_gradio()  # before a model is loaded
        silence_transformers()
        serve(model, host=host, port=port, device=device, max_upload=max_upload, open_browser=open_browser)

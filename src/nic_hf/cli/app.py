"""`nic app`."""

from typing import Annotated

import typer

from .checks import find_captioner
from .terminal import A_CAPTIONER, OWN_CAPTIONER, reported, silence_transformers


def app(
    model: Annotated[
        str | None, typer.Argument(help=A_CAPTIONER, metavar="[MODEL]", show_default=OWN_CAPTIONER)
    ] = None,
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; 0.0.0.0 for all interfaces.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[
        int | None, typer.Option(help="Port to listen on.", show_default="first free port from 7860")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, ...", show_default="a GPU if available")] = None,
    max_upload: Annotated[int, typer.Option(help="Maximum size of a photo in MB.", min=1)] = 20,
    open_browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
) -> None:
    """Caption photos in the browser.

    Upload or take a photo to see captions with their confidence, and the attention for each word. A second tab
    captions many photos to a file. The app is only reachable from this machine unless --host is set. Photos are
    deleted after ten minutes, and when the app stops.

    Exit code: 0 on success, 2 on an error.

    \b
    Examples:
      nic app --open
      nic app me/flickr8k-captioner --host 0.0.0.0 --port 8000
    """
    with reported("app"):
        model = find_captioner(model)
        from ..app import check_address

        check_address(host, port)
        from ..app import check_gradio, serve

        check_gradio()
        silence_transformers()
        serve(
            model,
            host=host,
            port=port,
            device=device,
            max_upload=max_upload,
            open_browser=open_browser,
        )

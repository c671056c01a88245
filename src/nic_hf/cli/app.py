"""`nic app`."""

from typing import Annotated

import typer


def app(
    model: Annotated[str, typer.Argument(help="A captioner: a folder or a Hub id.")],
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets others in.")] = "127.0.0.1",
    port: Annotated[
        int | None, typer.Option(help="Port to listen at.", min=1, max=65535, show_default="the first free from 7860")
    ] = None,
    max_file_size: Annotated[str, typer.Option(help="Largest upload.")] = "20mb",
    title: Annotated[str, typer.Option(help="Printed above.")] = "Show and Tell",
    open_browser: Annotated[bool, typer.Option("--open", help="Show it in the browser at once.")] = False,
) -> None:
    """Open a page on which photos get captions.

    Drop a photo or take one, see its likeliest captions, how sure each word is and, for a captioner with attention,
    where it looked; or caption many and get a file. What visitors send is deleted after some minutes.

    Example:

        nic app runs/flickr8k --open
    """
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        from ..app import CaptionExplainer, build_app, launch
        from ..checkpoint_nic import check_path
        from ..modeling_nic import NICForConditionalGeneration
        from ..processing_nic import NICProcessor

        check_path(model)
        captioner = NICForConditionalGeneration.from_pretrained(model)
        page = build_app(CaptionExplainer(captioner, NICProcessor.from_pretrained(model)), title)
        started = launch(page, host, port, max_file_size=max_file_size, open_browser=open_browser, wait=False)
        typer.echo(f"Serving {model} at {started[1]}; Ctrl-C ends it.")
        page.block_thread()
    except (ImportError, OSError, ValueError) as error:
        typer.echo(f"nic app: {error}", err=True)
        raise typer.Exit(2) from error

"""The app: captions of a photo, and of many, in a browser."""

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from ..bulk.formats import CaptionRecord, caption_format
from ..images_nic import load_photo
from .explained import CaptionExplainer, heat_map
from .markup import CSS, captions_html

MAX_PHOTOS = 1000
BATCH_SIZE = 16
# Seconds between looks at what visitors sent, and after which it is deleted.
KEPT = (60, 300)
ENDINGS = ("csv", "jsonl", "parquet")


def build_app(explainer: CaptionExplainer, title: str = "Show and Tell") -> Any:
    """The app as a `gradio.Blocks`.

    What visitors send lies in a temporary folder, of which all that is older than five minutes is deleted each minute,
    and the whole when the app ends. Programs call `/caption` (see [app.md](../../../docs/app.md)).

    Args:
        explainer: captions the photos.
        title: printed above.

    Raises:
        ImportError: gradio is not installed.
    """
    gr = _gradio()
    folder = tempfile.TemporaryDirectory(prefix="nic-app-", ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name  # where gradio puts uploads

    def explain(photo: Image.Image | None, beams: int, number: int, temperature: float) -> tuple[str, Any]:
        if photo is None:
            return "", gr.update(value=[], visible=False)
        captions = explainer.explain(load_photo(photo), int(number), int(beams), float(temperature))
        maps = []
        if explainer.has_attention and captions:
            maps = [
                (heat_map(photo, word.attention), word.text)
                for word in captions[0].words
                if word.attention is not None
            ]
        return captions_html(captions), gr.update(value=maps, visible=bool(maps))

    def describe(photo: Image.Image | None, beams: int, number: int, temperature: float) -> list[dict]:
        if photo is None:
            raise gr.Error("There is no photo.", print_exception=False)
        captions = explainer.explain(load_photo(photo), int(number), int(beams), float(temperature))
        return [
            {
                "caption": caption.text,
                "probability": caption.probability,
                "words": [{"word": word.text, "probability": word.probability} for word in caption.words],
            }
            for caption in captions
        ]

    progress_bar = gr.Progress()

    def caption_files(files: list[str] | None, ending: str, progress: Any = progress_bar) -> tuple[Any, list, str]:
        if not files:
            raise gr.Error("Choose some photos first.", duration=8, print_exception=False)
        if len(files) > MAX_PHOTOS:
            message = f"{len(files):,} photos are too many for the app, which takes {MAX_PHOTOS:,}: use nic caption."
            raise gr.Error(message, print_exception=False)
        records, broken = _caption_all(explainer, files, lambda done: progress((done, len(files)), unit="photos"))
        path = Path(tempfile.mkdtemp(dir=folder.name)) / f"captions.{ending}"
        caption_format(path).write(records, path, 1)
        rows = [[record.image_id, record.captions[0]] for record in records]
        note = f"{len(records):,} photos captioned." + "".join(f"\n- {line}" for line in broken)
        return gr.update(value=str(path), visible=True), rows, note

    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=KEPT) as app:
        gr.Markdown(f"# {title}\nA vision backbone and an LSTM say what is in a photo. What you send is not kept.")
        with gr.Tab("A photo"):
            with gr.Row():
                with gr.Column():
                    photo = gr.Image(type="pil", sources=["upload", "webcam", "clipboard"], label="Photo", height=360)
                    with gr.Accordion("How to search", open=False):
                        beams = gr.Slider(1, 20, 5, step=1, label="Beams")
                        number = gr.Slider(1, 10, 5, step=1, label="Captions")
                        temperature = gr.Slider(0, 1.5, 0, step=0.1, label="Temperature (0: search, no chance)")
                with gr.Column():
                    said = gr.HTML(label="Captions", elem_id="captions")
                    maps = gr.Gallery(label="Where it looked", columns=4, height="auto", visible=False)
            settings = [photo, beams, number, temperature]
            gr.on(
                [photo.change, beams.release, number.release, temperature.release],
                explain,
                settings,
                [said, maps],
                api_visibility="private",
                trigger_mode="always_last",
            )
        with gr.Tab("Many photos"):
            files = gr.File(file_count="multiple", file_types=["image"], label="Photos")
            ending = gr.Radio(ENDINGS, value="csv", label="File of captions")
            button = gr.Button("Caption them", variant="primary")
            result = gr.File(label="Captions", visible=False)
            note = gr.Markdown()
            table = gr.Dataframe(headers=["photo", "caption"], label="Captions", wrap=True, interactive=False)
            button.click(caption_files, [files, ending], [result, table, note], api_visibility="private")
        # For programs: the same as data.
        data = gr.JSON(visible=False)
        gr.Button(visible=False).click(describe, settings, data, api_name="caption")
    app.folder = folder  # deleted with the app
    return app


def launch(
    app: Any,
    host: str = "127.0.0.1",
    port: int | None = None,
    *,
    max_file_size: str = "20mb",
    open_browser: bool = False,
    wait: bool = True,
) -> Any:
    """Serve the app until Ctrl-C.

    Args:
        app: of [`build_app`].
        host: address to listen at; the default can be reached from this machine only.
        port: the first free one from 7860 on where not given.
        max_file_size: of an upload.
        open_browser: show it at once.
        wait: block; otherwise a thread serves, until `app.close()`.

    Raises:
        OSError: the port is taken.
    """
    gr = _gradio()
    theme = gr.themes.Soft(
        primary_hue="emerald", font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]
    )
    app.queue(max_size=256, default_concurrency_limit=1)
    try:
        return app.launch(
            server_name=host,
            server_port=port,
            max_file_size=max_file_size,
            inbrowser=open_browser,
            prevent_thread_lock=not wait,
            theme=theme,
            css=CSS,
            footer_links=["api"],
            quiet=True,
        )
    finally:
        if wait:
            app.folder.cleanup()


def _caption_all(
    explainer: CaptionExplainer, files: Sequence[str], report: Callable[[int], None]
) -> tuple[list[CaptionRecord], list[str]]:
    """Captions of the photos that can be read, in their order, and what is wrong with the others."""
    records, broken = [], []
    for start in range(0, len(files), BATCH_SIZE):
        names, photos = [], []
        for path in files[start : start + BATCH_SIZE]:
            try:
                photos.append(load_photo(Path(path)))
                names.append(Path(path).name)
            except OSError as error:
                broken.append(f"{Path(path).name}: {str(error).rpartition(': ')[2]}")
        if photos:
            texts = explainer.caption(photos)
            records += [CaptionRecord(name, [text]) for name, text in zip(names, texts, strict=True)]
        report(min(start + BATCH_SIZE, len(files)))
    return records, broken


def _gradio() -> Any:
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise ImportError('the app needs gradio: pip install "nic_hf[app]"') from error
    return gradio

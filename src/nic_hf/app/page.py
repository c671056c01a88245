"""The page of the app: a tab for one photo, a tab for many, and the endpoints of its API."""

import html
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.processing_utils import save_base64_to_cache

from .caption_html import MAP_SIDE, STYLE, bars_html, caption_html, maps_html, table_html, titled
from .scored_captions import AppCaptioner
from .sent_photos import caption_file

MOST_CAPTIONS, MOST_BEAMS, MOST_PHOTOS = 10, 20, 500
VISITORS = 32  # photos at a time, which share batches; gradio's pool has 40 threads
SEARCH, DRAW = "beam search", "sampling"
FORMATS = {"JSON lines": ".jsonl", "CSV": ".csv"}

# System fonts, because those of the themes are loaded from servers of Google.
THEME = gr.themes.Default(
    primary_hue="teal",
    font=["system-ui", "sans-serif"],
    font_mono=["ui-monospace", "monospace"],
)
# On a phone the caption comes right after the photo, and the controls between it and the other captions.
LAYOUT = """
.gradio-container { width: 100%; max-width: 72rem !important; margin: 0 auto !important }
#nic-parts { display: grid; grid-template: "photo" "caption" "controls" "bars" / minmax(0, 1fr) }
#nic-photo { grid-area: photo } #nic-caption { grid-area: caption } #nic-controls { grid-area: controls }
#nic-bars { grid-area: bars } #nic-controls, #nic-caption { align-self: start; min-width: 0 !important }
@media (min-width: 48rem) { #nic-parts {
  grid-template: "photo caption" auto "photo bars" auto "controls bars" 1fr / minmax(0, 5fr) minmax(0, 6fr) } }
footer { gap: 1rem } footer .divider { display: none !important }
"""
CSS = STYLE + LAYOUT


def build_page(captioner: AppCaptioner, keep_seconds: int = 600, max_upload: int = 20) -> gr.Blocks:
    """Build the page.

    Several threads read photos, and the model captions in batches what is sent meanwhile (see [`AppCaptioner`]).

    Args:
        captioner: the captioner.
        keep_seconds: how long uploads and results stay on disk.
        max_upload: maximum size in megabytes of a photo that is part of a request.

    Returns:
        The page; launch it with `theme=THEME, css=CSS`.
    """
    name = Path(captioner.name).name or "captioner"
    often = max(1, min(60, keep_seconds // 2))
    with gr.Blocks(title=f"{name} - nic", analytics_enabled=False, delete_cache=(often, keep_seconds)) as page:
        gr.Markdown(f"# Caption photos\n{_about(captioner, name)}")
        with gr.Tab("Photo"):
            _photo_tab(captioner, max_upload)
        with gr.Tab("Folder"):
            _folder_tab(captioner)
    return page.queue(max_size=512)


def _about(captioner: AppCaptioner, name: str) -> str:
    config = captioner.model.config
    kind = "with attention" if captioner.has_attention else "Show and Tell"
    # The name of a folder may contain anything, and must not be read as Markdown.
    return (
        f"`{name.replace('`', '')}`: {config.backbone_config.model_type} + LSTM, {kind}, {config.vocab_size:,} words"
    )


def _photo_tab(captioner: AppCaptioner, max_upload: int) -> None:
    default_beams = min(captioner.model.generation_config.num_beams or 1, MOST_BEAMS)

    def caption(photo: str | None, number: int, method: str, beams: int, temperature: float) -> dict[str, Any]:
        """Caption a photo.

        Returns `{"captions": [...]}`, best first: `caption`, `confidence` (the chance that people accept it; null if
        the captioner is not calibrated), `unlike_training_photos`, `probability`, `probability_a_word` and `words`, a
        list of `word`, `probability` and, if the captioner has attention, `attention`: rows of weights.
        """
        if photo is None:
            raise _refusal("no photo: give one")
        settings = _settings(number, method, beams, temperature)
        try:
            found = captioner.describe(photo, **settings)
        except OSError as error:
            raise _refusal(str(error)) from error
        return {"captions": [each.to_json() for each in found]}

    def show(photo: str | None, number: int, method: str, beams: int, temperature: float) -> tuple[str, str, str]:
        if photo is None:
            return _note("Drop or take a photo to see its caption here."), "", ""
        settings = _settings(number, method, beams, temperature)
        try:
            found = captioner.describe(photo, **settings)
            seen = captioner.seen(photo, MAP_SIDE) if captioner.has_attention else None
        except OSError as error:
            return _note(html.escape(str(error))), "", ""  # removes the caption of the previous photo
        maps = "" if seen is None else titled("Attention for each word", maps_html(seen, found[0]))
        return caption_html(found[0]), titled("Best captions", bars_html(found)), maps

    with gr.Row(elem_id="nic-parts"):  # LAYOUT places them
        photo = gr.Image(
            type="filepath",
            image_mode=None,
            sources=["upload", "webcam", "clipboard"],
            label="Photo",
            height=340,
            elem_id="nic-photo",
        )
        _leave_to_the_captioner(photo, max_upload)
        with gr.Column(elem_id="nic-caption"):
            gr.Markdown("### Caption")
            best = gr.HTML(_note("Drop or take a photo to see its caption here."), elem_id="nic-best")
        with gr.Column(elem_id="nic-controls"), gr.Group():
            number = gr.Slider(1, MOST_CAPTIONS, 5, step=1, label="Captions")
            method = gr.Radio([SEARCH, DRAW], value=SEARCH, label="Found by")
            beams = gr.Slider(1, MOST_BEAMS, max(default_beams, 5), step=1, label="Beams")
            temperature = gr.Slider(0.1, 2, 1, step=0.1, label="Temperature", visible=False)
        bars = gr.HTML(elem_id="nic-bars")
    maps = gr.HTML(elem_id="nic-maps", visible=captioner.has_attention)
    inputs: list[Any] = [photo, number, method, beams, temperature]
    gr.on(
        [component.change for component in inputs],
        show,
        inputs,
        [best, bars, maps],
        trigger_mode="always_last",
        show_progress="minimal",
        concurrency_id="photo",
        concurrency_limit=VISITORS,
        api_visibility="private",
    )
    method.change(
        lambda chosen: (gr.update(visible=chosen == SEARCH), gr.update(visible=chosen == DRAW)),
        method,
        [beams, temperature],
        api_visibility="private",
        queue=False,
    )
    gr.Button(visible=False).click(
        caption,
        inputs,
        gr.JSON(visible=False, label="captions"),
        api_name="caption",
        concurrency_id="photo",
        concurrency_limit=VISITORS,
    )


def _folder_tab(captioner: AppCaptioner) -> None:
    def caption_files(
        photos: list[str] | None,
        number: int,
        kind: str,
        progress: gr.Progress = gr.Progress(),  # noqa: B008 - gradio expects it there
    ) -> Iterator[tuple[str, str]]:
        """Caption photos; return a summary as HTML, and a file of captions.

        In JSON lines each photo is `{"image_id", "caption"}`, with `captions` if there are several; in CSV the columns
        are `image_id` and `caption`, or `caption_0`, `caption_1` and so on.
        """
        if not photos:
            raise _refusal("no photos: give some")
        if len(photos) > MOST_PHOTOS:
            raise _refusal(f"{len(photos)} photos at once; {MOST_PHOTOS} at most (nic caption takes any number)")
        if kind not in FORMATS or not 1 <= int(number) <= MOST_CAPTIONS:
            raise _refusal(
                f"the file format is one of {', '.join(FORMATS)}, with 1 to {MOST_CAPTIONS} captions per photo"
            )
        beams = captioner.model.generation_config.num_beams or 1
        generation = {} if beams >= number else {"num_beams": int(number)}
        progress((0, len(photos)), "Captioning", unit="photos")

        def tell(done: int) -> None:
            progress((done, len(photos)), "Captioning", unit="photos")

        with caption_file(captioner, photos, FORMATS[kind], num_captions=int(number), tell=tell, **generation) as (
            file,
            records,
            broken,
        ):
            rows = [(each.image_id, each.error.removeprefix(f"{each.image_id}: ")) for each in broken]
            rows += [(each.image_id, each.captions[0]) for each in records]
            others = len(photos) - len(records) - len(broken)
            note = f"{len(records)} of {len(photos) - others} photos captioned."
            note += f" {others} other file{'s' if others > 1 else ''} left out." if others else ""
            yield table_html(rows, note), str(file)  # gradio copies the file before it resumes this

    # All file types: gradio would reject a whole folder because of one file that is not a photo.
    photos = gr.File(file_count="multiple", label="Photos", height=220, elem_id="nic-photos", type="filepath")
    with gr.Row():
        number = gr.Slider(1, MOST_CAPTIONS, 1, step=1, label="Captions per photo")
        kind = gr.Radio(list(FORMATS), value="JSON lines", label="File")
    start = gr.Button("Caption them", variant="primary", elem_id="nic-start")
    output = gr.File(label="Captions to download", interactive=False, elem_id="nic-file", height=80)
    summary = gr.HTML(elem_id="nic-summary")
    start.click(
        caption_files,
        [photos, number, kind],
        [summary, output],
        api_name="caption_files",
        concurrency_id="folder",
        concurrency_limit=2,
        show_progress_on=summary,
    )


def _refusal(reason: str) -> gr.Error:
    """Return an error for the visitor, without a traceback in the log."""
    return gr.Error(reason, print_exception=False)


def _settings(number: int, method: str, beams: int, temperature: float) -> dict[str, Any]:
    """Return arguments of `AppCaptioner.describe`. API clients are not limited by the controls of the page."""
    if not (1 <= number <= MOST_CAPTIONS and 1 <= beams <= MOST_BEAMS and 0.05 <= temperature <= 5):
        raise _refusal(f"allowed: 1 to {MOST_CAPTIONS} captions, 1 to {MOST_BEAMS} beams, a temperature of 0.05 to 5")
    if method not in (SEARCH, DRAW):
        raise _refusal(f"unknown method {method!r}: use {SEARCH!r} or {DRAW!r}")
    if method == DRAW:
        return {"num_captions": int(number), "temperature": float(temperature)}
    return {"num_captions": int(number), "num_beams": int(beams)}


def _leave_to_the_captioner(photo: gr.Image, max_upload: int) -> None:
    """Pass a photo on as it is: gradio would open it first, and reports broken files poorly."""
    preprocess: Callable[..., Any] = photo.preprocess

    def path_of(payload: Any) -> Any:
        if payload is not None and payload.path:
            return payload.path
        if payload is None or not (payload.url or "").startswith("data:"):
            return preprocess(payload)
        if len(payload.url) * 3 / 4 > max_upload * 2**20:  # base64 has four characters for three bytes
            raise _refusal(f"the photo is larger than {max_upload} MB")
        return save_base64_to_cache(payload.url, photo.GRADIO_CACHE)

    photo.preprocess = path_of  # type: ignore[method-assign]


def _note(text: str) -> str:
    return f'<p class="nic-note">{text}</p>'

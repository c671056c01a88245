"""A captioner that runs in ONNX Runtime, without torch and Transformers."""

import json
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ..model.checkpoint import staged_save
from .generation_settings import GenerationSettings, resolve_settings
from .onnx_folder import (
    CONFIG,
    ENCODER,
    GENERATION_CONFIG,
    GRAPHS,
    INT8_STATIC,
    MANIFEST,
    PROCESSOR,
    TOKENIZER,
    files_to_copy,
    find_folder,
    read_json,
    read_manifest,
)
from .preprocessing import PhotoPreprocessor
from .search import NO_WORD, NICOnnxOutput, generate, padding
from .sessions import cores, open_session, run_session

# A batch is split among threads if each gets at least this many photos: this takes two thirds of the time of running
# the whole batch with all threads.
_PHOTOS_A_THREAD = 2
_SPECIAL_IDS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


class NICOnnxCaptioner:
    """Captions photos with ONNX Runtime and the files that [`export_onnx`] wrote.

    It needs onnxruntime, numpy, tokenizers and Pillow, and huggingface_hub to load from the Hub.

    Example:

    ```python
    captioner = NICOnnxCaptioner.from_pretrained("captioner-onnx")
    captioner.caption("photo.jpg")                        # "a dog runs through the grass"
    captioner.caption(["a.jpg", "b.jpg"], num_beams=5)    # one caption each
    ids = captioner.generate(pixel_values=captioner.preprocess(["a.jpg"]), do_sample=True, seed=0)
    captioner.decode(ids)
    ```

    Attributes:
        config (`dict`), generation_config (`dict`): contents of the files with these names.
        manifest (`dict`): contents of `nic_onnx.json`: precision, opset, shape of photos, versions.
        preprocess (`PhotoPreprocessor`): converts photos to `pixel_values`.
        tokenizer (`tokenizers.Tokenizer`): the tokenizer.
        device: "cpu", for the pipelines of Transformers; `providers` decide where it runs.
    """

    main_input_name = "pixel_values"
    device = "cpu"

    def __init__(
        self, folder: str | PathLike, *, providers: Sequence[Any] | None = None, num_threads: int = 0
    ) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)
        self.config = read_json(self.folder / CONFIG)
        self.generation_config = read_json(self.folder / GENERATION_CONFIG)
        self._own_settings = {name: self.config.get(name) for name in _SPECIAL_IDS} | self.generation_config
        resolve_settings(self._own_settings)
        self.preprocess = PhotoPreprocessor(read_json(self.folder / PROCESSOR)["image_processor"])
        # Imported here so that errors in the files are reported without waiting for it.
        from tokenizers import Tokenizer

        self.tokenizer = Tokenizer.from_file(str(self.folder / TOKENIZER))
        self._providers, self._num_threads = providers, num_threads
        self._encoder, self._first_step, self._decoder_step = self._open(num_threads)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str | PathLike,
        *,
        subfolder: str = "",
        providers: Sequence[Any] | None = None,
        num_threads: int = 0,
        **hub: Any,
    ) -> "NICOnnxCaptioner":
        """Load a captioner.

        Args:
            name_or_path: a folder that `nic export onnx` wrote, or a Hub id.
            subfolder: subfolder of it.
            providers: ONNX Runtime's execution providers in order of preference, such as
                `["CUDAExecutionProvider"]`. Defaults to the CPU.
            num_threads: number of threads; 0 for the number of cores.
            **hub: passed to `huggingface_hub.snapshot_download` (`revision`, `token`, `cache_dir`, ...).

        Raises:
            FileNotFoundError: if the folder does not exist or files are missing.
            ValueError: if files are damaged or from different exports, or a provider is not available or does not
                work.
            ImportError: if onnxruntime is not installed.
        """
        return cls(find_folder(name_or_path, subfolder, **hub), providers=providers, num_threads=num_threads)

    def generate(
        self,
        pixel_values: Any = None,
        *,
        encoder_outputs: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        generation_config: Any = None,
        return_dict_in_generate: bool = False,
        **settings: Any,
    ) -> Any:
        """Generate captions by greedy decoding, beam search or sampling, like `NICForConditionalGeneration.generate`.

        Args:
            pixel_values (`np.ndarray` of shape `(batch_size, 3, height, width)`): the photos.
            encoder_outputs (`np.ndarray` of shape `(batch_size, feature_size)`): features of
                [`~NICOnnxCaptioner.get_image_features`] instead of `pixel_values`, with attention of shape
                `(batch_size, num_regions, feature_size)`.
            decoder_input_ids (`np.ndarray` of shape `(batch_size, prompt_length)`): first words of the captions,
                starting with `<bos>`.
            decoder_attention_mask (`np.ndarray` with the shape of `decoder_input_ids`): 0 for padding.
            generation_config: a dict, or a `GenerationConfig` of Transformers.
            return_dict_in_generate: return a [`NICOnnxOutput`] with the scores of captions.
            **settings: fields of [`nic_hf.export.GenerationSettings`]. They default to the checkpoint's generation
                config.

        Returns:
            `np.ndarray` of shape `(batch_size * num_return_sequences, length)`: padded token ids, starting with
            `<bos>`.

        Raises:
            ValueError: if an argument has an invalid value, or an unknown argument would change captions.
        """
        resolved = resolve_settings(self._own_settings, generation_config, settings)
        if encoder_outputs is not None:
            images = self._check_features(encoder_outputs)
        elif pixel_values is not None:
            images = self._check_pixels(pixel_values)
        else:
            raise ValueError("no image: give `pixel_values`, or its features as `encoder_outputs`")
        prompt = self._check_prompt(decoder_input_ids, len(images), resolved.decoder_start_token_id)
        if decoder_input_ids is not None and decoder_attention_mask is not None:
            prompt = np.where(_to_array(decoder_attention_mask, bool), prompt, NO_WORD)
        number = 1 if resolved.do_sample else self._number_of_parts(len(images))  # sampling draws for a whole batch
        if number < 2:
            output = self._generate(images, prompt, resolved)
        else:
            captioner, parts = self._one_thread, (np.array_split(images, number), np.array_split(prompt, number))
            found = self._pool.map(lambda photos, words: captioner._generate(photos, words, resolved), *parts)
            output = _joined(list(found), padding(resolved))
        return output if return_dict_in_generate else output.sequences

    def get_image_features(self, pixel_values: Any) -> np.ndarray:
        """Backbone features of photos, for `encoder_outputs`.

        Raises:
            ValueError: if photos do not have the exported shape.
        """
        pixels = self._check_pixels(pixel_values)
        if len(pixels) == 0:
            return np.empty((0, *self._feature_shape()), dtype=np.float32)
        number = self._number_of_parts(len(pixels))
        if number < 2:
            return self._encode(pixels)
        return np.concatenate(list(self._pool.map(self._one_thread._encode, np.array_split(pixels, number))))

    def caption(self, images: Any, *, batch_size: int = 32, **settings: Any) -> Any:
        """Caption photos.

        Args:
            images: a photo (path, bytes, PIL image, array; see [`nic_hf.images.load_photo`]), or a list of photos.
            batch_size: number of photos per batch.
            **settings: as for [`~NICOnnxCaptioner.generate`].

        Returns:
            One caption for a photo, or a list of captions for a list. With `num_return_sequences` above 1, each
            caption is a list of captions.

        Raises:
            OSError: if a photo cannot be read; the message names the file.
        """
        if not isinstance(images, list | tuple):
            return self.caption([images], **settings)[0]
        if batch_size < 1:
            raise ValueError(f"`batch_size` must be 1 or more, got {batch_size}")
        captions: list[Any] = []
        for start in range(0, len(images), batch_size):
            batch = images[start : start + batch_size]
            texts = self.decode(self.generate(self.preprocess(batch), **settings))
            each = len(texts) // len(batch)
            captions += texts if each == 1 else [texts[i : i + each] for i in range(0, len(texts), each)]
        return captions

    def reader(self, features: np.ndarray) -> "LSTMReader":
        """The LSTM after reading the features, for custom search algorithms (see [`nic_hf.export.search`])."""
        return LSTMReader(self._first_step, self._decoder_step, features)

    def decode(self, ids: Any) -> list[str]:
        """Decode token ids of shape `(num_captions, length)` to texts without special tokens."""
        return self.tokenizer.decode_batch(_to_array(ids, np.int64).tolist(), skip_special_tokens=True)

    def save_pretrained(self, save_directory: str | PathLike, **kwargs: Any) -> None:
        """Copy the captioner to another folder, which is written completely or not at all.

        Raises:
            OSError: if `save_directory` cannot be written.
        """
        with staged_save(save_directory) as folder:
            for name in (*files_to_copy(self.folder), MANIFEST):
                shutil.copyfile(self.folder / name, folder / name)

    def to(self, *args: Any, **kwargs: Any) -> "NICOnnxCaptioner":
        """Do nothing: `providers` decide where it runs. The pipelines of Transformers call this."""
        return self

    def can_generate(self) -> bool:
        """Return True. The pipelines of Transformers call this."""
        return True

    def __repr__(self) -> str:
        facts = {"precision": self.manifest["precision"], "providers": self._encoder.get_providers()}
        return f"{type(self).__name__}({str(self.folder)!r}, {json.dumps(facts)})"

    def _open(self, num_threads: int) -> list[Any]:
        is_static = self.manifest["precision"] == INT8_STATIC
        # One step of the decoder is too small for several threads, which would also wait in the way of the encoder's.
        threads = {ENCODER: num_threads} if self._providers is None else {}
        default = 1 if self._providers is None else num_threads
        return [
            open_session(self.folder / name, self._providers, threads.get(name, default), unpack=not is_static)
            for name in GRAPHS
        ]

    @cached_property
    def _one_thread(self) -> "NICOnnxCaptioner":
        """The same captioner, which runs in the calling thread only."""
        return type(self)(self.folder, providers=self._providers, num_threads=1)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._num_threads or cores(), thread_name_prefix="nic-onnx")

    def _number_of_parts(self, num_photos: int) -> int:
        """Number of parts to split a batch into."""
        if self._providers is not None:
            return 1
        return min(self._num_threads or cores(), num_photos // _PHOTOS_A_THREAD)

    def _encode(self, pixels: np.ndarray) -> np.ndarray:
        """Features of photos, in this thread; on the CPU one photo after the other.

        The first layers' outputs for a photo of 224 px take 5 MB and stay in a core's cache. Those of a batch of 16 do
        not: it takes 1.3 times as long in float32 and 1.4 times in 8 bits.
        """
        photos = np.split(pixels, len(pixels)) if self._providers is None else [pixels]
        return np.concatenate(
            [run_session(self._encoder, ["image_features"], {"pixel_values": photo})[0] for photo in photos]
        )

    def _generate(self, images: np.ndarray, prompt: np.ndarray, settings: GenerationSettings) -> NICOnnxOutput:
        """Caption photos (four dimensions) or features (fewer) in this thread."""
        if len(images) == 0:
            return NICOnnxOutput(prompt)
        features = self.get_image_features(images) if images.ndim == 4 else images
        return generate(self.reader(features), prompt, self.config["vocab_size"], settings)

    def _check_pixels(self, pixel_values: Any) -> np.ndarray:
        pixels = _to_array(pixel_values, np.float32)
        expected = tuple(self.manifest["image_shape"])
        if pixels.ndim != 4 or pixels.shape[1:] != expected:
            raise ValueError(
                f"`pixel_values` must have the shape (batch_size, {', '.join(map(str, expected))}) that was exported, "
                f"got {pixels.shape}"
            )
        return pixels

    def _feature_shape(self) -> tuple[int, ...]:
        return tuple(self._first_step.get_inputs()[0].shape[1:])

    def _check_features(self, encoder_outputs: Any) -> np.ndarray:
        """Features in any form that the PyTorch model takes: an array, a tensor or the output of an encoder."""
        if isinstance(encoder_outputs, Mapping):
            encoder_outputs = encoder_outputs.get("last_hidden_state")
        elif isinstance(encoder_outputs, tuple | list) and encoder_outputs:
            encoder_outputs = encoder_outputs[0]
        features = _to_array(encoder_outputs, np.float32)
        expected = self._feature_shape()
        if len(expected) == 1 and features.ndim == 3 and features.shape[1] == 1:
            features = features[:, 0]
        if features.shape[1:] != expected or features.ndim != 1 + len(expected):
            raise ValueError(
                f"`encoder_outputs` must be features of shape (batch_size, {', '.join(map(str, expected))}), got "
                f"{features.shape}"
            )
        return features

    def _check_prompt(self, ids: Any, num_photos: int, start: int | None) -> np.ndarray:
        if ids is None:
            start = self.config["bos_token_id"] if start is None else start
            return np.full((num_photos, 1), start, dtype=np.int64)
        prompt = _to_array(ids, np.int64)
        if prompt.ndim != 2 or len(prompt) != num_photos or prompt.shape[1] == 0:
            raise ValueError(
                f"`decoder_input_ids` must have the shape ({num_photos}, prompt_length), got {prompt.shape}"
            )
        if prompt.size and not (prompt.min() >= 0 and prompt.max() < self.config["vocab_size"]):
            raise ValueError(
                f"`decoder_input_ids` has ids outside the vocabulary of 0 to {self.config['vocab_size'] - 1}"
            )
        return prompt


class LSTMReader:
    """The LSTM's two graphs and its state, of shape `(num_layers, num_photos, num_captions, hidden_size)`."""

    def __init__(self, first_step: Any, decoder_step: Any, features: np.ndarray) -> None:
        self.session = decoder_step
        state = run_session(first_step, None, {first_step.get_inputs()[0].name: features})
        names = [node.name for node in first_step.get_outputs()]
        state = dict(zip(names, state, strict=True))
        self.state = {name: state.pop(name)[:, :, None] for name in ("hidden_state", "cell_state")}
        self.regions = state  # for attention: one row per photo, whatever the number of captions

    def read(self, input_ids: np.ndarray) -> np.ndarray:
        """Read one word of each caption (`(num_photos, num_captions)`), and return logits with one more dimension.

        `NO_WORD` leaves the state unchanged.
        """
        inputs = {"input_ids": np.ascontiguousarray(np.maximum(input_ids, 0)), **self.state, **self.regions}
        logits, *state = run_session(self.session, ["logits", "new_hidden_state", "new_cell_state"], inputs)
        is_word = (input_ids != NO_WORD)[..., None]
        if not is_word.all():
            state = [np.where(is_word, new, old) for new, old in zip(state, self.state.values(), strict=True)]
        self.state = dict(zip(self.state, state, strict=True))
        return logits

    def spread(self, num_captions: int) -> None:
        """Repeat the state of each photo for `num_captions` captions."""
        self.state = {name: np.repeat(part, num_captions, axis=2) for name, part in self.state.items()}

    def reorder(self, captions: np.ndarray) -> None:
        """Let caption `i` of a photo continue its caption `captions[photo, i]`."""
        num_photos, num_captions = captions.shape
        rows = (np.arange(num_photos)[:, None] * num_captions + captions).ravel()
        for name, part in self.state.items():
            flat = part.reshape(part.shape[0], -1, part.shape[-1])
            self.state[name] = flat[:, rows].reshape(part.shape)

    def keep(self, photos: np.ndarray) -> None:
        """Keep only the photos where the boolean array `photos` is True."""
        self.state = {name: part[:, photos] for name, part in self.state.items()}
        self.regions = {name: part[photos] for name, part in self.regions.items()}


def _joined(parts: list[NICOnnxOutput], fill: int) -> NICOnnxOutput:
    """Concatenate the captions of the parts of a batch, padded to the longest one."""
    length = max(part.sequences.shape[1] for part in parts)
    padded = [
        np.pad(part.sequences, ((0, 0), (0, length - part.sequences.shape[1])), constant_values=fill) for part in parts
    ]
    scores = [part.sequences_scores for part in parts if part.sequences_scores is not None]
    return NICOnnxOutput(np.concatenate(padded), np.concatenate(scores) if scores else None)


def _to_array(value: Any, dtype: Any) -> np.ndarray:
    """Convert an array, a list or a tensor on any device to an array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value.float() if dtype == np.float32 else value  # NumPy has no bfloat16
    array = np.asarray(value)
    if array.dtype.kind not in "fiub":
        raise ValueError(f"expected numbers, got {value!r:.80}")
    return np.ascontiguousarray(array, dtype=dtype)

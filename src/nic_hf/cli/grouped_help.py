"""Options in groups in a help text, which typer has only with rich: that takes longer to import than all else."""

from collections.abc import Mapping, Sequence
from typing import Any

from typer.core import TyperCommand

from .data_options import OPTIONS

OF_DATA = ("data", "split", *OPTIONS)
GROUPS: dict[str, dict[str, Sequence[str]]] = {
    "caption": {
        "Photos": ("lists", "on_error", "timeout", "allow_private"),
        "Captioned photos": OF_DATA,
        "Captions": ("num_captions", "num_beams", "sample", "temperature", "seed", "max_new_tokens", "min_confidence"),
        "Output": ("output", "sidecar", "overwrite", "as_json", "contact_sheet", "contact_sheet_photos", "verbose"),
        "Speed": ("device", "batch_size", "workers"),
    },
    "evaluate": {
        "For a captioner": ("suite", "beams", "transfer", "run", "max_photos", "train_split", "cache_dir", "output"),
        "Captioned photos": OF_DATA,
        "For a file of captions": ("references", "compare", "per_image", "allow_partial"),
    },
    "calibrate": {"Captioned photos": OF_DATA},
    "doctor": {"Captioned photos": (*OF_DATA, "max_photos")},
}


class GroupedCommand(TyperCommand):
    """A command whose `--help` shows options in the groups of [`GROUPS`], others under "Options"."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, options of no group, and groups."""
        groups: Mapping[str, Sequence[str]] = GROUPS.get(self.name or "", {})
        sections: dict[str, list[tuple[str, str]]] = {title: [] for title in ("Arguments", "Options", *groups)}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None:
                usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
                sections[next((title for title, own in groups.items() if parameter.name in own), usual)].append(record)
        for title, records in sections.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)

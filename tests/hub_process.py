"""Scripts that use the Hub of `hub_server`, in processes of their own: huggingface_hub reads its address once."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from hub_server import TOKEN, HubServer


def run(
    script: str, folder: Path, home: Path, hub: HubServer, python: str = sys.executable, **environment: str
) -> dict[str, Any]:
    """Run a script against a Hub in a process of its own; its `answers`."""
    given = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))},
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    end = "\nfrom pathlib import Path\nimport json\nPath('answers.json').write_text(json.dumps(answers))\n"
    start = f"URL, TOKEN = {hub.url!r}, {TOKEN!r}\n"
    command = [python, "-c", start + script + end]
    done = subprocess.run(command, capture_output=True, text=True, env=given, cwd=folder, timeout=1200)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())

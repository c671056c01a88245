"""Time of a backbone with and without `keep_freed_memory`, in separate processes that take turns.

    python benchmarks/freed_memory.py path/to/mobilenet-v2

Prints processor seconds (user and system) and page faults per batch of 32 photos, and the peak, and writes JSON.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

CHILD = """
import json, resource, sys
import torch
from transformers import AutoModel
from nic_hf.malloc_settings import keep_freed_memory
if sys.argv[2] == "keep":
    assert keep_freed_memory(), "needs Linux with glibc"
model = AutoModel.from_pretrained(sys.argv[1]).eval().to(memory_format=torch.channels_last)
photos = torch.randn(32, 3, 224, 224)
with torch.inference_mode():
    model(photos)
    before = resource.getrusage(resource.RUSAGE_SELF)
    for _ in range(4):
        model(photos)
    after = resource.getrusage(resource.RUSAGE_SELF)
names = {"program_s": "ru_utime", "system_s": "ru_stime", "faults": "ru_minflt"}
row = {name: (getattr(after, field) - getattr(before, field)) / 4 for name, field in names.items()}
print(json.dumps({**row, "peak_mib": after.ru_maxrss / 1024}))
"""


def main():
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path("freed_memory.json"))
    args = parser.parse_args()
    rows = []
    for _ in range(args.rounds):
        for way in ("default", "keep"):
            command = [sys.executable, "-c", CHILD, args.backbone, way]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            rows.append({"way": way, **json.loads(done.stdout.splitlines()[-1])})
            print(*(f"{value:10.3f}" if isinstance(value, float) else f"{value:10}" for value in rows[-1].values()))
    best = {
        way: min(row["program_s"] + row["system_s"] for row in rows if row["way"] == way)
        for way in ("default", "keep")
    }
    print(f"default / keep: {best['default'] / best['keep']:.2f}")
    args.output.write_text(json.dumps({"rows": rows, "ratio": best["default"] / best["keep"]}, indent=1))


if __name__ == "__main__":
    main()

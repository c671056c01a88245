"""Write the table by which `load_captions` knows Flickr8k's official splits from file names.

It contains the CRC-32 of each name by split, not the names.

    python benchmarks/flickr8k_split.py path/to/flickr8k
"""

import argparse
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import nic_hf.data
from nic_hf.data.splits import FLICKR8K_LISTS, name_key


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="Flickr8k with Flickr_8k.trainImages.txt and so on.")
    folder = parser.parse_args().folder
    table = {}
    for split, name in FLICKR8K_LISTS.items():
        names = (folder / name).read_text("utf-8").split()
        table[split] = np.sort(np.asarray([name_key(photo) for photo in names], dtype=np.uint32))
        print(f"{split}: {len(names):,} photos")
    source = "CRC-32 of photo names, official splits of Flickr8k (Hodosh, Young and Hockenmaier 2013)"
    save_file(table, Path(nic_hf.data.__file__).with_name("flickr8k_split.safetensors"), {"source": source})


if __name__ == "__main__":
    main()

"""Write the Java tool's tokens of captions to `ptb_hard.jsonl` and `ptb_digests.json`, next to this file.

Run with pycocoevalcap 1.2 and Java installed and NIC_HF_TEST_DATA naming the folder of real test data. The hard
captions are those of `ptb_hard.jsonl` itself: to add some, append lines `["the caption", ""]` there and run this.
"""

import gzip
import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path

HERE = Path(__file__).parent
HARD = HERE / "ptb_hard.jsonl"
DIGESTS = HERE / "ptb_digests.json"


def java_tokens(captions: Iterable[str]) -> list[str]:
    """Tokens of captions by pycocoevalcap's `PTBTokenizer`, separated by spaces."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    tokenized = PTBTokenizer().tokenize({index: [{"caption": text}] for index, text in enumerate(captions)})
    return [tokens for (tokens,) in tokenized.values()]


def corpora(folder: Path) -> dict[str, list[str]]:
    """Captions of the real corpora, in the order of their files."""
    flickr8k = (folder / "flickr8k" / "Flickr8k.token.txt").read_text().splitlines()
    return {
        "flickr8k": [line.split("\t")[1] for line in flickr8k],
        "coco_references": _captions(json.loads((folder / "eval" / "coco_fakecap_references.json").read_text())),
        "coco_results": _captions(json.loads((folder / "eval" / "coco_fakecap_results.json").read_text())),
        "coco_val2014": _captions(
            json.loads(gzip.decompress((folder / "eval" / "coco_val2014_captions.json.gz").read_bytes()))
        ),
    }


def _captions(node: object) -> list[str]:
    """Captions in a JSON value: texts named "caption", and lists of texts."""
    if isinstance(node, dict):
        return [
            text
            for key, value in node.items()
            for text in ([value] if key == "caption" and isinstance(value, str) else _captions(value))
        ]
    if isinstance(node, list):
        return [text for value in node for text in ([value] if isinstance(value, str) else _captions(value))]
    return []


def digest(tokens: list[str]) -> dict[str, int | str]:
    """Number of captions and SHA-256 of their tokens, with one caption per line."""
    return {"captions": len(tokens), "sha256": hashlib.sha256("\n".join(tokens).encode()).hexdigest()}


def main() -> None:
    """Write both files."""
    hard = [json.loads(line)[0] for line in HARD.read_text().splitlines()]
    lines = [json.dumps(pair, ensure_ascii=True) for pair in zip(hard, java_tokens(hard), strict=True)]
    HARD.write_text("\n".join(lines) + "\n")
    texts = corpora(Path(os.environ["NIC_HF_TEST_DATA"]))
    DIGESTS.write_text(json.dumps({name: digest(java_tokens(t)) for name, t in texts.items()}, indent=2) + "\n")


if __name__ == "__main__":
    main()

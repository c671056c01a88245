"""Score predictions with pycocoevalcap 1.2: its PTB tokenizer and METEOR 1.5, both in Java, and CIDEr-D.

    python benchmarks/score_with_coco_tools.py predictions_test.json --data path/to/flickr8k --split test

`predictions_test.json` maps image ids to captions, as written by `examples/train_captioner.py --predict_split test`.
"""

import argparse
import json
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from nic_hf.data import load_captions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("predictions", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", required=True)
    args = parser.parse_args()

    predictions = json.loads(args.predictions.read_text(encoding="utf-8"))
    photos = load_captions(args.data, args.split).select_columns(["image_id", "captions"])
    references = {photo["image_id"]: photo["captions"] for photo in photos}
    if predictions.keys() != references.keys():
        raise SystemExit(f"{args.predictions}: captions of {len(predictions)} photos, the split has {len(references)}")

    tokenizer = PTBTokenizer()
    gts = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in references.items()})
    res = tokenizer.tokenize({i: [{"caption": text}] for i, text in predictions.items()})
    scores = dict(
        zip(("bleu_1", "bleu_2", "bleu_3", "bleu_4"), Bleu(4).compute_score(gts, res, verbose=0)[0], strict=True)
    )
    scores["meteor"] = Meteor().compute_score(gts, res)[0]
    scores["rouge_l"] = Rouge().compute_score(gts, res)[0]
    scores["cider"] = Cider().compute_score(gts, res)[0]
    words = [len(texts[0].split()) for texts in res.values()]
    scores["words"] = sum(words) / len(words)
    scores["distinct"] = len({texts[0] for texts in res.values()}) / len(res)
    print(json.dumps({name: round(float(value), 4) for name, value in scores.items()}, indent=1))


if __name__ == "__main__":
    main()

"""Write `scores.json`: scores by pycocoevalcap 1.2 and its tokenizer, for `tests/evaluation/test_golden_scores.py`.

    NIC_HF_TEST_DATA=path/to/data python tests/golden/make_score_golden.py

It needs Java. What is scored is in `score_corpora.py`.
"""

import json
import os
from importlib.metadata import version
from pathlib import Path

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
from score_corpora import CORPORA


def main() -> None:
    data = Path(os.environ["NIC_HF_TEST_DATA"])
    golden: dict = {"scorer": f"pycocoevalcap {version('pycocoevalcap')}", "corpora": {}}
    for name, load in CORPORA.items():
        predictions, references = load(data)
        tokenizer = PTBTokenizer()
        gts = tokenizer.tokenize({i: [{"caption": text} for text in references[i]] for i in predictions})
        res = tokenizer.tokenize({i: [{"caption": text}] for i, text in predictions.items()})
        bleu, bleus = Bleu(4).compute_score(gts, res, verbose=0)
        rouge, rouges = Rouge().compute_score(gts, res)
        cider, ciders = Cider().compute_score(gts, res)
        scores = {f"bleu_{n}": bleu[n - 1] for n in range(1, 5)} | {"rouge_l": float(rouge), "cider": float(cider)}
        golden["corpora"][name] = {"photos": len(predictions), "scores": scores}
        if len(predictions) <= 1000:
            # Scores of each photo, not rounded: errors could cancel in a mean.
            columns = {"bleu_4": bleus[3], "rouge_l": rouges, "cider": ciders}
            golden["corpora"][name]["per_image"] = {key: [float(v) for v in column] for key, column in columns.items()}
        print(name, scores)
    path = Path(__file__).parent / "scores.json"
    path.write_text(json.dumps(golden) + "\n")


if __name__ == "__main__":
    main()

"""Time and memory of `score_captions`, compared with pycocoevalcap and its Java tokenizer.

    python benchmarks/scoring.py path/to/captions.json

The file contains several captions per photo; the first one is scored against the others.
"""

import argparse
import resource
import time

from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from nic_hf.evaluation import load_references, score_captions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("captions")
    parser.add_argument("--compared", type=int, default=1000, help="number of photos to score with pycocoevalcap")
    args = parser.parse_args()

    captions = load_references(args.captions)
    for number in sorted({args.compared, len(captions) // 4, len(captions) // 2, len(captions)}):
        chosen = dict(list(captions.items())[:number])
        predictions = {i: texts[0] for i, texts in chosen.items()}
        references = {i: texts[1:] for i, texts in chosen.items()}
        start = time.perf_counter()
        scores = score_captions(predictions, references)
        ours = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"{number} photos: {ours:.2f} s, peak memory {peak:.0f} MiB")
        if number != args.compared:
            continue
        start = time.perf_counter()
        tokenizer = PTBTokenizer()
        gts = tokenizer.tokenize({i: [{"caption": text} for text in texts] for i, texts in references.items()})
        res = tokenizer.tokenize({i: [{"caption": text}] for i, text in predictions.items()})
        bleu = Bleu(4).compute_score(gts, res, verbose=0)[0]
        theirs = dict(zip(("bleu_1", "bleu_2", "bleu_3", "bleu_4"), bleu, strict=True))
        theirs["rouge_l"] = Rouge().compute_score(gts, res)[0]
        theirs["cider"] = Cider().compute_score(gts, res)[0]
        seconds = time.perf_counter() - start
        apart = max(abs(theirs[name] - scores[name]) for name in theirs)
        print(
            f"  pycocoevalcap: {seconds:.2f} s, {seconds / ours:.1f} times as long; scores at most {apart:.1e} apart"
        )


if __name__ == "__main__":
    main()

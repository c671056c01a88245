"""Agreement of caption metrics with people: Kendall's tau with Flickr8k's human judgments, and published values.

    python benchmarks/human_judgments.py path/to/flickr8k --metrics bleu rouge_l cider meteor

The folder contains Flickr8k.token.txt, ExpertAnnotations.txt and CrowdFlowerAnnotations.txt. METEOR needs Java.

Published: CLIPScore (Hessel et al. 2021, arXiv 2104.08718), tables 1 and 2; BLEU-1 on Flickr8k-CF, which is not in
them, from Distribution Normalization (Zhou et al. 2023, arXiv 2302.11084).
"""

import argparse
import time
from pathlib import Path

from nic_hf.evaluation import DocumentFrequencies
from nic_hf.evaluation.paper.human_judgments import (
    judgment_correlation,
    load_crowdflower_judgments,
    load_expert_judgments,
    load_token_captions,
)
from nic_hf.evaluation.score_names import SCORES

COLUMNS = ("bleu_1", "bleu_4", "rouge_l", "meteor", "cider", "spice")
NAMES = {name: SCORES[name].title for name in COLUMNS} | {"clip_s": "CLIP-S", "ref_clip_s": "RefCLIP-S"}
PUBLISHED = {
    "Flickr8k-Expert": {
        "bleu_1": 32.3,
        "bleu_4": 30.8,
        "rouge_l": 32.3,
        "meteor": 41.8,
        "cider": 43.9,
        "spice": 44.9,
        "clip_s": 51.2,
        "ref_clip_s": 53.0,
    },
    "Flickr8k-CF": {
        "bleu_1": 17.9,
        "bleu_4": 16.9,
        "rouge_l": 19.9,
        "meteor": 22.2,
        "cider": 24.6,
        "spice": 24.4,
        "clip_s": 34.4,
        "ref_clip_s": 36.4,
    },
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--metrics", nargs="+", default=["bleu", "rouge_l", "cider"])
    parser.add_argument("--skip-malformed", action="store_true", help="skip malformed lines of CrowdFlower's file")
    parser.add_argument("--photo-frequencies", action="store_true", help="count photos once for CIDEr-D")
    args = parser.parse_args()

    captions = load_token_captions(args.folder / "Flickr8k.token.txt")
    expert = load_expert_judgments(args.folder / "ExpertAnnotations.txt", captions)
    crowd = load_crowdflower_judgments(
        args.folder / "CrowdFlowerAnnotations.txt", captions, skip_malformed=args.skip_malformed
    )
    rows = []
    for corpus, judgments, own_captions, tau in (
        ("Flickr8k-Expert", expert, "leave_out", "tau_c"),
        ("Flickr8k-CF", crowd, "no_reference", "tau_b"),
    ):
        frequencies = None
        if args.photo_frequencies:
            frequencies = DocumentFrequencies(captions[i] for i in {judgment.image_id for judgment in judgments})
        start = time.perf_counter()
        ours = judgment_correlation(
            judgments, captions, args.metrics, own_captions=own_captions, document_frequencies=frequencies
        )
        seconds = time.perf_counter() - start
        number = next(iter(ours.values())).num_judgments
        print(f"{corpus}: {len(judgments)} pairs in the file, {number} judgments counted, {seconds:.1f} s")
        for name, published in PUBLISHED[corpus].items():
            measured = f"{100 * getattr(ours[name], tau):.1f}" if name in ours else "–"
            rows.append(f"| {corpus} | {tau.replace('_', '-')} | {NAMES[name]} | {measured} | {published:.1f} |")
    print("\n| judgments | Kendall's | metric | ours | published |\n|---|---|---|---|---|")
    print("\n".join(rows))


if __name__ == "__main__":
    main()

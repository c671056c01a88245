"""Choose beam size, length penalty and repetition control on the dev split, then caption the test split.

    python benchmarks/tune_decoding.py runs/flickr8k --data path/to/flickr8k --num_beams 3 5 --length_penalty 0.6 0.8 1
    python benchmarks/tune_decoding.py runs/a runs/b --data path/to/flickr8k --split test --num_beams 5 \
        --length_penalty 0.8 --captions test.json

    python benchmarks/tune_decoding.py runs/flickr8k --data path/to/flickr8k --num_beams 20 --length_penalty 0 \
        --consensus 0 0.1 0.2

Several checkpoints form an ensemble. `--consensus` uses consensus decoding with these sharpnesses and the document
frequencies of the training split. Photos are encoded once for all settings, and beams are searched once for all
sharpnesses. Prints BLEU and CIDEr-D of each setting, with the best one by their sum last, and writes JSON.
"""

import argparse
import itertools
import json
import time
from pathlib import Path

import torch
from tqdm.auto import tqdm
from transformers.modeling_outputs import BaseModelOutput

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import PhotoDataset, load_captions
from nic_hf.decoding import CaptionSimilarity, ConsensusDecoding, NICEnsemble
from nic_hf.decoding.consensus import searched_captions
from nic_hf.evaluation import score_captions
from nic_hf.malloc_settings import keep_freed_memory

NAMES = ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider")


@torch.inference_mode()
def encode(model, photos, batch_size):
    """Image features of all photos."""
    blocks = []
    for start in tqdm(range(0, len(photos), batch_size), desc="Encoding", unit="batch"):
        rows = range(start, min(start + batch_size, len(photos)))
        pixels = torch.stack([photos[row]["pixel_values"] for row in rows])
        blocks.append(model.get_encoder()(pixels).last_hidden_state)
    return torch.cat(blocks)


@torch.inference_mode()
def search(model, features, batch_size, eos, **settings):
    """The captions of all beams of each photo as token ids, and their log probabilities."""
    found, beams = [], settings["num_beams"]
    for block in tqdm(features.split(batch_size), desc="Searching", unit="batch"):
        beam = model.generate(
            encoder_outputs=BaseModelOutput(last_hidden_state=block),
            num_return_sequences=beams,
            return_dict_in_generate=True,
            output_scores=True,
            **settings,
        )
        if beams == 1:  # greedy captions have no scores
            beam.sequences_scores = torch.zeros(len(beam.sequences))
        rows, log_probs = searched_captions(beam, [eos], settings["length_penalty"])
        photos = (slice(first, first + beams) for first in range(0, len(rows), beams))
        found += [(rows[own], log_probs[own]) for own in photos]
    return found


def choose(found, similarity, sharpness):
    """The caption of each photo by consensus with this sharpness, or without it the first of the beam search."""
    if sharpness is None:
        return [captions[0] for captions, _ in found]
    consensus = ConsensusDecoding(similarity, sharpness)
    return [captions[consensus.rank(captions, log_probs)[0]] for captions, log_probs in found]


def total(row):
    """The sum that settings are compared by."""
    return sum(row[name] for name in NAMES)


def main():
    """Score all settings, and keep the best."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+")
    parser.add_argument("--data", required=True)
    parser.add_argument("--split", default="dev")
    parser.add_argument("--num_beams", type=int, nargs="+", default=[3])
    parser.add_argument("--length_penalty", type=float, nargs="+", default=[1.0])
    parser.add_argument("--no_repeat_ngram_size", type=int, nargs="+", default=[0])
    parser.add_argument("--consensus", type=float, nargs="+", default=[None], metavar="SHARPNESS")
    parser.add_argument("--mirrored", action="store_true", help="Also show each member the mirrored photo.")
    parser.add_argument("--batch_size", type=int, default=50)
    parser.add_argument("--captions", type=Path, help="File for the captions of the best setting.")
    parser.add_argument("--output", type=Path, help="JSON file for the scores.")
    args = parser.parse_args()
    keep_freed_memory()
    processor = NICProcessor.from_pretrained(args.checkpoints[0])
    if len(args.checkpoints) == 1 and not args.mirrored:
        model = NICForConditionalGeneration.from_pretrained(args.checkpoints[0]).optimize_for_inference()
    else:
        model = NICEnsemble.from_pretrained(args.checkpoints, args.mirrored)
    model.eval()
    table = load_captions(args.data, args.split)
    ids, references = table["image_id"][:], dict(zip(table["image_id"], table["captions"], strict=True))
    features = encode(model, PhotoDataset(table, processor), args.batch_size)
    rows, similarity = [], None
    if args.consensus != [None]:
        training = load_captions(args.data, "train")["captions"]
        similarity = CaptionSimilarity(processor.tokenizer(own).input_ids for own in training)
    for beams, penalty, ngram in itertools.product(args.num_beams, args.length_penalty, args.no_repeat_ngram_size):
        settings = {"num_beams": beams, "length_penalty": penalty, "no_repeat_ngram_size": ngram}
        start = time.perf_counter()
        found = search(model, features, args.batch_size, model.config.eos_token_id, **settings)
        seconds = time.perf_counter() - start
        for sharpness in args.consensus:
            texts = processor.tokenizer.batch_decode(choose(found, similarity, sharpness), skip_special_tokens=True)
            captions = dict(zip(ids, texts, strict=True))
            scores = score_captions(captions, references, metrics=["bleu", "cider"])
            row = {**settings, "consensus": sharpness, **{name: round(100 * scores[name], 2) for name in NAMES}}
            row["words"] = round(sum(len(text.split()) for text in texts) / len(texts), 2)
            rows.append({**row, "distinct": len(set(texts)), "seconds": round(seconds, 1)})
            print(json.dumps(rows[-1]), flush=True)
            if rows[-1] == max(rows, key=total):
                best = captions
    print("best:", json.dumps(max(rows, key=total)))
    if args.captions:
        args.captions.write_text(json.dumps(best, indent=1, ensure_ascii=False), encoding="utf-8")
    if args.output:
        args.output.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()

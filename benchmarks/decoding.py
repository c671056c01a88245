"""Time of `generate()` with given image features, compared with bare PyTorch loops over the same weights.

    python benchmarks/decoding.py CHECKPOINT --data path/to/flickr8k

Beam search of a batch is compared with a vectorized beam loop, and greedy decoding of one photo with a loop over the
LSTM: the whole caption, including the preparation of `generate()`, and each additional word of a caption that does not
end. Captions must be the same. Both alternate in one process, so that changes in machine speed affect both. Prints a
table and writes JSON.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch
import transformers
from machine import save

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import cache_features, load_captions


class Bare:
    """A captioner's weights without its classes."""

    def __init__(self, model):
        self.mean, self.std = model.image_projection.mean, model.image_projection.std
        self.project = model.image_projection.linear
        self.embed, self.head = model.decoder.embed_tokens, model.lm_head
        (self.weights,) = model.decoder.lstm.all_weights
        self.bos, self.eos = model.config.bos_token_id, model.config.eos_token_id
        self.pad = model.config.pad_token_id

    def start(self, features):
        """The state of the LSTM after reading features of shape (batch, size)."""
        zeros = features.new_zeros(len(features), self.weights[1].shape[1])
        return torch.lstm_cell(self.project((features - self.mean) / self.std), (zeros, zeros), *self.weights)

    def step(self, words, state):
        """Logits (rows, vocabulary) and state after one more word of shape (rows,), computed by the fused cell."""
        state = torch.lstm_cell(self.embed(words), state, *self.weights)
        return self.head(state[0]), state

    def greedy(self, features, max_words):
        """Word ids of one photo's caption."""
        state, words = self.start(features), torch.tensor([self.bos])
        caption = [self.bos]
        for _ in range(max_words):
            logits, state = self.step(words, state)
            words = logits.argmax(-1)
            caption.append(int(words))
            if caption[-1] == self.eos:
                break
        return [caption]

    def beam(self, features, num_beams, max_words):
        """Best captions of a batch by log probability per word, with all photos and beams in one tensor."""
        batch, vocabulary = len(features), self.head.out_features
        rows = torch.arange(batch).unsqueeze(1)
        state = tuple(part.repeat_interleave(num_beams, dim=0) for part in self.start(features))
        words = torch.full((batch * num_beams,), self.bos)
        captions = torch.full((batch, num_beams, max_words + 1), self.pad)
        captions[:, :, 0] = self.bos
        scores = torch.full((batch, num_beams), -1e9)
        scores[:, 0] = 0
        best, best_score = captions[:, 0].clone(), torch.full((batch,), -1e9)
        ended = torch.zeros(batch, num_beams) - 1e9  # scores of the best finished captions
        for length in range(1, max_words + 1):
            logits, state = self.step(words, state)
            total = (scores.view(-1, 1) + logits.log_softmax(-1)).view(batch, -1)
            top, index = total.topk(2 * num_beams)
            beam, word = index // vocabulary, index % vocabulary
            is_end = word == self.eos
            if length == max_words:
                is_end = torch.ones_like(is_end)
            normalised = (top / length).masked_fill(~is_end, -1e9)
            normalised[:, num_beams:] = -1e9  # ends count only among the first beams
            now, which = normalised.max(1)
            better = now > best_score
            ending = captions[rows[:, 0], beam[rows[:, 0], which]]
            ending[:, length] = word[rows[:, 0], which]
            best = torch.where(better.unsqueeze(1), ending, best)
            best_score = torch.maximum(best_score, now)
            ended = torch.cat([ended, normalised], 1).topk(num_beams).values
            kept = top.masked_fill(is_end, -1e9).topk(num_beams).indices
            scores, beam, words = (part.gather(1, kept) for part in (top, beam, word))
            captions = captions[rows, beam]
            captions[:, :, length] = words
            chosen = (rows * num_beams + beam).flatten()
            state = tuple(part.index_select(0, chosen) for part in state)
            words = words.flatten()
            if length == max_words or not (scores[:, 0] / length > ended[:, -1]).any():
                break
        return best.tolist()


def strip(ids, bare):
    """Word ids up to the end of the caption."""
    ids = [i for i in ids[1:] if i != bare.pad]
    return ids[: ids.index(bare.eos)] if bare.eos in ids else ids


def seconds(run, words, more_words=None):
    """Number of words, or each additional word."""
    start = time.perf_counter()
    run(words)
    short = time.perf_counter() - start
    if more_words is None:
        return short
    start = time.perf_counter()
    run(more_words)
    return (time.perf_counter() - start - short) / (more_words - words)


@torch.inference_mode()
def compare(name, ours, theirs, rounds, lengths):
    """Seconds of both in turn, and their ratio; with two lengths, seconds a word from the one to the other.

    `ours` and `theirs` take the number of words.
    """
    for run in (ours, theirs):
        run(lengths[-1])
    first, second = [], []
    for _ in range(rounds):
        first.append(seconds(ours, *lengths))
        second.append(seconds(theirs, *lengths))
    ratios = [mine / other for mine, other in zip(first, second, strict=True)]
    row = {
        "what": name,
        "generate_ms": 1e3 * min(first),
        "bare_ms": 1e3 * min(second),
        "ratio_of_best": min(first) / min(second),
        "ratio_median": statistics.median(ratios),
    }
    print(f"{name:34}", *(f"{value:9.2f}" for value in list(row.values())[1:]))
    return row


def main():
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--data", required=True)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--num_beams", type=int, default=3)
    parser.add_argument("--max_words", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--output", type=Path, default=Path("decoding.json"))
    args = parser.parse_args()
    model = NICForConditionalGeneration.from_pretrained(args.checkpoint).eval()
    processor = NICProcessor.from_pretrained(args.checkpoint)
    photos = load_captions(args.data, "dev").select(range(args.batch_size))
    features = torch.stack(list(cache_features(model, processor, photos).chunks())).flatten(0, 1)
    bare = Bare(model)

    def encoded(rows):
        return transformers.modeling_outputs.BaseModelOutput(last_hidden_state=features[:rows].unsqueeze(1))

    def generated(rows, max_words, **settings):
        with torch.inference_mode():
            return model.generate(
                encoder_outputs=encoded(rows), max_new_tokens=max_words, length_penalty=1.0, **settings
            ).tolist()

    beams, batch = args.num_beams, args.batch_size
    once, further = (args.max_words,), (args.max_words, 4 * args.max_words)
    endless = Bare(model)
    endless.eos = bare.bos  # never generated
    rows = [
        (
            f"beam {beams}, {batch} photos",
            lambda words: generated(batch, words, num_beams=beams),
            lambda words: bare.beam(features, beams, words),
            once,
        ),
        (
            "greedy, 1 photo",
            lambda words: generated(1, words, num_beams=1),
            lambda words: bare.greedy(features[:1], words),
            once,
        ),
        (
            "greedy, 1 photo, each further word",
            lambda words: generated(1, words, num_beams=1, eos_token_id=bare.bos),
            lambda words: endless.greedy(features[:1], words),
            further,
        ),
        (
            f"beam {beams}, 1 photo",
            lambda words: generated(1, words, num_beams=beams),
            lambda words: bare.beam(features[:1], beams, words),
            once,
        ),
    ]
    print(f"{'':34} {'generate':>9} {'bare':>9} {'ratio':>9} {'median':>9}")
    results = []
    for name, ours, theirs, lengths in rows:
        with torch.inference_mode():
            found = zip(ours(lengths[-1]), theirs(lengths[-1]), strict=True)
            same = sum(strip(mine, bare) == strip(other, bare) for mine, other in found)
        row = compare(name, ours, theirs, args.rounds, lengths)
        results.append({**row, "same_captions": same})
    save(args.output, settings=vars(args), threads=torch.get_num_threads(), rows=results)
    print([row["same_captions"] for row in results], "captions are the same")


if __name__ == "__main__":
    main()

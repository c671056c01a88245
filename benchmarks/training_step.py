"""Time of a training step with cached features: Trainer compared with a plain PyTorch loop.

    python benchmarks/training_step.py --data path/to/flickr8k --backbone path/to/mobilenet-v2

Both train the same architecture on the same features and captions with the same optimizer, batch size and vocabulary.
With --bf16 the Trainer is also measured in bfloat16. All alternate in one process, so that changes in machine speed
affect all of them. Prints a table and writes JSON.
"""

import argparse
import copy
import random
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import save
from torch import nn
from torch.nn import functional as F

from nic_hf import NICForConditionalGeneration, NICProcessor
from nic_hf.data import CaptionDataset, PhotoDataset, cache_features, load_captions
from nic_hf.data.length_grouped_sampler import LengthGroupedSampler
from nic_hf.model.processor import load_image_processor, squeeze_to
from nic_hf.tokenization import train_tokenizer
from nic_hf.training import CaptioningTrainer, CaptioningTrainingArguments


class PlainCaptioner(nn.Module):
    """Show and Tell as in a tutorial."""

    def __init__(self, feature_size, vocab_size, size, dropout):
        super().__init__()
        self.project = nn.Linear(feature_size, size)
        self.embed = nn.Embedding(vocab_size, size)
        self.lstm = nn.LSTM(size, size, batch_first=True)
        self.head = nn.Linear(size, vocab_size)
        self.dropout = nn.Dropout(dropout)

    def forward(self, features, words):
        """Logits of shape (batch, time, words)."""
        inputs = torch.cat([self.project(features).unsqueeze(1), self.embed(words)], dim=1)
        outputs, _ = self.lstm(self.dropout(inputs))
        return self.head(self.dropout(outputs[:, 1:]))


def plain_loop(features, samples, vocab_size, steps, args, seed, order=None):
    """Seconds per step of a bare loop, with the data in memory as lists and one tensor.

    Batches are random, as a tutorial would draw them, or as `order` has them.
    """
    torch.manual_seed(seed)
    model = PlainCaptioner(features.shape[1], vocab_size, args.size, args.dropout)
    optimiser = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    if order is None:
        order = random.Random(seed).sample(range(len(samples)), steps * args.batch_size)
    model.train()
    start = time.perf_counter()
    for step in range(steps):
        batch = [samples[i] for i in order[step * args.batch_size : (step + 1) * args.batch_size]]
        labels = nn.utils.rnn.pad_sequence([ids for _, ids in batch], batch_first=True, padding_value=-100)
        words = torch.cat([torch.ones(len(batch), 1, dtype=torch.long), labels[:, :-1].clamp_min(0)], dim=1)
        logits = model(features[[row for row, _ in batch]], words)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), label_smoothing=args.label_smoothing)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
    return (time.perf_counter() - start) / steps, loss.item()


def only_training(model, dataset, folder, callbacks=None, **settings):
    """A Trainer on the CPU without evaluations, checkpoints and progress bars."""
    args = CaptioningTrainingArguments(
        output_dir=folder,
        eval_strategy="no",
        save_strategy="no",
        load_best_model_at_end=False,
        disable_tqdm=True,
        report_to="none",
        use_cpu=True,
        **settings,
    )
    return CaptioningTrainer(model=model, args=args, train_dataset=dataset, callbacks=callbacks)


def trainer_loop(model, dataset, steps, args, seed, bf16=False):
    """Seconds per step of CaptioningTrainer, without its setup."""
    model = copy.deepcopy(model)  # Accelerate prepares a model once, for the number format of that time
    model.init_weights()
    settings = {"per_device_train_batch_size": args.batch_size, "learning_rate": args.learning_rate}
    with tempfile.TemporaryDirectory() as folder:
        result = only_training(model, dataset, folder, max_steps=steps, seed=seed, bf16=bf16, **settings).train()
    return result.metrics["train_runtime"] / steps, result.training_loss


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="captioned photos with a train split")
    parser.add_argument("--backbone", required=True, help="pretrained vision model")
    parser.add_argument("--max-photos", type=int, default=None)
    parser.add_argument("--steps", type=int, default=100, help="steps per round, at most one epoch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--dropout", type=float, default=0.5)
    parser.add_argument("--label-smoothing", type=float, default=0.1)
    parser.add_argument("--learning-rate", type=float, default=7e-4)
    parser.add_argument("--cache-dir", default=None)
    parser.add_argument("--bf16", action="store_true", help="also measure bfloat16")
    parser.add_argument("--json", type=Path, default=None, help="output file")
    args = parser.parse_args()

    photos = load_captions(args.data, "train")
    if args.max_photos:
        photos = photos.select(range(args.max_photos))
    tokenizer = train_tokenizer(caption for captions in photos["captions"] for caption in captions)
    processor = NICProcessor(squeeze_to(load_image_processor(args.backbone), 224), tokenizer)
    model = NICForConditionalGeneration.from_backbone_pretrained(
        args.backbone,
        tokenizer=tokenizer,
        embedding_size=args.size,
        hidden_size=args.size,
        dropout=args.dropout,
        label_smoothing=args.label_smoothing,
    )
    table = cache_features(model, processor, photos, args.cache_dir)
    model.set_feature_statistics(*table.statistics())
    dataset = CaptionDataset(PhotoDataset(photos, processor, table), tokenizer)
    features = torch.cat(list(table.chunks()))
    features = (features - model.image_projection.mean) / model.image_projection.std
    pairs = dataset.pairs.with_format(None)
    samples = [(pair["row"], torch.tensor(pair["labels"])) for pair in pairs]

    args.steps = min(args.steps, len(samples) // args.batch_size)  # an epoch

    plain_loop(features, samples, len(tokenizer), 5, args, seed=0)  # warm up
    rounds = []
    for number in range(args.rounds):
        trainer, trainer_loss = trainer_loop(model, dataset, args.steps, args, number)
        plain, plain_loss = plain_loop(features, samples, len(tokenizer), args.steps, args, number)
        order = list(LengthGroupedSampler(dataset.lengths(), args.batch_size, number))
        grouped, _ = plain_loop(features, samples, len(tokenizer), args.steps, args, number, order)
        rounds.append(
            {
                "trainer_s": trainer,
                "plain_s": plain,
                "grouped_s": grouped,
                "ratio": trainer / plain,
                "ratio_grouped": trainer / grouped,
            }
        )
        if args.bf16:
            rounds[-1]["bf16_s"], _ = trainer_loop(model, dataset, args.steps, args, number, bf16=True)
            rounds[-1]["bf16_rate"] = trainer / rounds[-1]["bf16_s"]
        print(
            f"round {number + 1}: Trainer {trainer * 1e3:.0f} ms/step (mean loss {trainer_loss:.2f}), "
            f"plain {plain * 1e3:.0f} ms/step (last loss {plain_loss:.2f}), ratio {trainer / plain:.2f}, "
            f"plain on the Trainer's batches {grouped * 1e3:.0f} ms/step, ratio {trainer / grouped:.2f}"
        )
    steps_an_epoch = len(dataset) // args.batch_size
    medians = {name: statistics.median(r[name] for r in rounds) for name in rounds[0]}
    print(f"\n| | ms per step (median of {args.rounds}) | s per epoch of {steps_an_epoch} steps |\n|---|---|---|")
    labels = {
        "trainer_s": "CaptioningTrainer",
        "plain_s": "plain PyTorch loop",
        "grouped_s": "plain PyTorch loop, the Trainer's batches",
    }
    if args.bf16:
        labels["bf16_s"] = f"CaptioningTrainer, bfloat16, {medians['bf16_rate']:.2f} times the rate"
    for name, label in labels.items():
        print(f"| {label} | {medians[name] * 1e3:.1f} | {medians[name] * steps_an_epoch:.1f} |")
    print(
        f"\nratio, median of the rounds: {medians['ratio']:.3f}; on the same batches: {medians['ratio_grouped']:.3f}"
    )
    save(args.json, settings=vars(args), threads=torch.get_num_threads(), rounds=rounds, medians=medians)


if __name__ == "__main__":
    main()

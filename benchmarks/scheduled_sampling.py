"""Cost of scheduled sampling: a training step with it, compared with teacher forcing.

python benchmarks/scheduled_sampling.py [--hidden_size 512] [--vocab_size 2540] [--words 12]
"""

import argparse
import statistics
import time

import torch
from transformers import MobileNetV2Config

from nic_hf import NICConfig, NICForConditionalGeneration
from nic_hf.training.scheduled_sampling import mixed_inputs


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--vocab_size", type=int, default=2540)
    parser.add_argument("--words", type=int, default=12)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    args = parser.parse_args()

    torch.manual_seed(0)
    config = NICConfig(
        backbone_config=MobileNetV2Config(),
        vocab_size=args.vocab_size,
        hidden_size=args.hidden_size,
        embedding_size=args.hidden_size,
        dropout=0.5,
    )
    model = NICForConditionalGeneration(config).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-4)
    inputs = {
        "encoder_outputs": torch.randn(args.batch_size, config.feature_size),
        "labels": torch.randint(4, args.vocab_size, (args.batch_size, args.words)),
    }

    def step(probability):
        start = time.perf_counter()
        words = {"decoder_input_ids": mixed_inputs(model, inputs, probability)} if probability else {}
        model(**inputs, **words).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - start

    step(0.0), step(0.25)
    plain, sampled = zip(*[(step(0.0), step(0.25)) for _ in range(args.rounds)], strict=True)
    ratios = sorted(b / a for a, b in zip(plain, sampled, strict=True))
    plain_ms, sampled_ms = 1000 * statistics.median(plain), 1000 * statistics.median(sampled)
    print(f"teacher-forced {plain_ms:.0f} ms, scheduled {sampled_ms:.0f} ms")
    print(f"ratio: median {statistics.median(ratios):.2f}, rounds {ratios[0]:.2f} to {ratios[-1]:.2f}")


if __name__ == "__main__":
    main()

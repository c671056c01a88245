"""Make a captioner smaller: keep the most important LSTM units and embedding directions, to be trained further.

    python benchmarks/shrink_captioner.py runs/small --data path/to/flickr8k --hidden_size 568 --embedding_size 224
    nic train --recipe distill --from_checkpoint runs/small --teacher flickr8k ... --data path/to/flickr8k

An LSTM unit counts by what it sends on: the standard deviation of its output times the norm of its outgoing weights.
The LSTM's inputs, words and photos, are projected to the directions that matter most to its gates (a truncated
singular value decomposition). Both are measured on captions of the training split.
"""

import argparse

import torch
from torch.nn import functional as F

from nic_hf import NICForConditionalGeneration, NICProcessor, load_captions
from nic_hf.captioners import captioner_path
from nic_hf.configuration_nic import IGNORED_LABEL
from nic_hf.evaluation.suite.tables import photos_with_features


def lstm_inputs_and_outputs(model, features, labels):
    """Inputs `(steps, embedding_size)` and outputs `(steps, hidden_size)` of the LSTM over whole captions."""
    words = model.decoder.embed_tokens(model.prepare_decoder_input_ids_from_labels(labels))
    inputs = torch.cat([model.image_projection(features), words], dim=1)
    real = F.pad(labels != IGNORED_LABEL, (1, 0), value=True)  # the image comes first
    return inputs[real], model.decoder.lstm(inputs)[0][real]


def shrink(model, inputs, outputs, hidden_size, embedding_size):
    """The smaller model: same backbone and vocabulary."""
    sizes = {"hidden_size": hidden_size, "embedding_size": embedding_size}
    small = NICForConditionalGeneration(type(model.config).from_dict({**model.config.to_dict(), **sizes}))
    weights = dict(model.state_dict())
    outgoing = torch.cat([weights["lm_head.weight"], weights["decoder.lstm.weight_hh_l0"]])
    kept = (outputs.std(dim=0) * outgoing.norm(dim=0)).topk(hidden_size).indices.sort().values
    gates = torch.cat([kept + gate * model.config.hidden_size for gate in range(4)])
    into = weights["decoder.lstm.weight_ih_l0"][gates]
    # The best approximation of the gates' inputs by `embedding_size` directions, over the inputs that occur.
    values, vectors = torch.linalg.eigh(inputs.T @ inputs / len(inputs))
    root = vectors * values.clamp(min=0).sqrt()
    left, singular, _ = torch.linalg.svd(into @ root, full_matrices=False)
    share = singular[:embedding_size].square().sum() / singular.square().sum()
    print(f"{hidden_size} of {model.config.hidden_size} units, {share:.1%} of the variance of what the gates read")
    to_gates = left[:, :embedding_size] * singular[:embedding_size].sqrt()
    to_inputs = left[:, :embedding_size].T @ into / singular[:embedding_size].sqrt().unsqueeze(1)
    weights["decoder.lstm.weight_ih_l0"] = to_gates
    weights["decoder.embed_tokens.weight"] = weights["decoder.embed_tokens.weight"] @ to_inputs.T
    for name in ("image_projection.linear.weight", "image_projection.linear.bias"):
        weights[name] = to_inputs @ weights[name]
    weights["decoder.lstm.weight_hh_l0"] = weights["decoder.lstm.weight_hh_l0"][gates][:, kept]
    for name in ("decoder.lstm.bias_ih_l0", "decoder.lstm.bias_hh_l0"):
        weights[name] = weights[name][gates]
    weights["lm_head.weight"] = weights["lm_head.weight"][:, kept]
    small.load_state_dict(weights)
    small.generation_config = model.generation_config
    return small


@torch.no_grad()
def main():
    """Measure, shrink, save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output")
    parser.add_argument("--captioner", help="by default the one that comes with the package")
    parser.add_argument("--data", required=True)
    parser.add_argument("--hidden_size", type=int, required=True)
    parser.add_argument("--embedding_size", type=int, required=True)
    parser.add_argument("--photos", type=int, default=1000)
    args = parser.parse_args()
    folder = captioner_path(args.captioner)
    model, processor = NICForConditionalGeneration.from_pretrained(folder).eval(), NICProcessor.from_pretrained(folder)
    table = load_captions(args.data, "train").select(range(args.photos))
    photos = photos_with_features(model, processor, table)
    features = torch.stack([photos.features[row] for row in photos.rows])
    captions = [own[0] for own in photos.references().values()]
    labels = processor(text_target=captions, return_tensors="pt")["labels"]
    inputs, outputs = lstm_inputs_and_outputs(model, features.view(len(features), 1, -1), labels)
    small = shrink(model, inputs, outputs, args.hidden_size, args.embedding_size)
    print(f"{small.num_parameters():,} parameters, before {model.num_parameters():,}")
    small.save_pretrained(args.output)
    processor.save_pretrained(args.output)


if __name__ == "__main__":
    main()

"""Makes goldens/towers/siglip_step.tsv: one step of SigLIP on random weights, as transformers computes it, in f64.

    python reference/two_towers.py

Made with transformers 5.23.0, torch 2.15.0, numpy 2.4.6.

A line a number or tensor: its name, its norm, and its sum with weights in [-1, 1). Weights, images, texts and those sums'
weights are not stored: `uniform` computes them, and paligemma/tests/it/towers.rs computes the same.
"""

import math
import pathlib

import numpy as np
import torch
from transformers import SiglipConfig, SiglipModel

OUT = pathlib.Path(__file__).resolve().parent.parent / "goldens" / "towers"
U64 = np.uint64
PAIRS, LENGTH, VOCAB = 5, 6, 50


def mixed(x):
    """SplitMix64's output function, on an array."""
    x = (x + U64(0x9E3779B97F4A7C15)).astype(U64)
    x = (x ^ (x >> U64(30))) * U64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> U64(27))) * U64(0x94D049BB133111EB)
    return x ^ (x >> U64(31))


def uniform(stream, count):
    """`count` numbers in [-1, 1) of 24 bits, exact in f32."""
    keys = mixed((U64(stream) << U64(32)) + np.arange(count, dtype=U64))
    return ((keys >> U64(40)).astype(np.float64) / 2**23 - 1).astype(np.float32)


def split(state):
    """transformers' tensors under our names: queries, keys and values of the pooling apart, its probe as a row."""
    ours = {}
    for name, tensor in state.items():
        name = name.replace("vision_model.", "vision_tower.")
        if "attention.in_proj_" in name:
            for part, rows in zip("qkv", tensor.chunk(3)):
                ours[name.replace("in_proj_", f"{part}_proj.")] = rows
        elif name.endswith("head.probe"):
            ours[name] = tensor[0]
        else:
            ours[name] = tensor
    return ours


def fill(model):
    """Tensors are numbered by their sorted names."""
    state = {name: tensor for name, tensor in model.state_dict().items() if "position_ids" not in name}
    for stream, (name, tensor) in enumerate(sorted(split(state).items())):
        numbers = torch.from_numpy(uniform(stream, tensor.numel())).double().reshape(tensor.shape)
        if name == "logit_scale":
            numbers = torch.tensor([1.5], dtype=torch.float64)
        elif name == "logit_bias":
            numbers = torch.tensor([-1.0], dtype=torch.float64)
        elif "norm" in name:
            numbers = numbers * 0.25 + (1.0 if name.endswith("weight") else 0.0)
        elif name.endswith("bias"):
            numbers = numbers * 0.125
        elif "embedding" in name and "patch" not in name or name.endswith("probe"):
            numbers = numbers * 0.5
        else:
            numbers = numbers * float(np.float32(math.sqrt(3 / math.prod(tensor.shape[1:]))))
        # Parts of in_proj are views of it.
        tensor.copy_(numbers)


def main():
    config = SiglipConfig(
        vision_config={
            "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 3,
            "image_size": 28, "patch_size": 14, "layer_norm_eps": 1e-6, "hidden_act": "gelu_pytorch_tanh",
        },
        text_config={
            "hidden_size": 16, "intermediate_size": 36, "num_hidden_layers": 2, "num_attention_heads": 2,
            "vocab_size": VOCAB, "max_position_embeddings": LENGTH, "projection_size": 24, "layer_norm_eps": 1e-6,
            "hidden_act": "gelu_pytorch_tanh", "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
        },
        attn_implementation="eager",
    )
    model = SiglipModel(config).double().eval()
    with torch.no_grad():
        fill(model)
    images = torch.from_numpy(uniform(900, PAIRS * 3 * 28 * 28)).double().reshape(PAIRS, 3, 28, 28)
    ids = ((torch.from_numpy(uniform(901, PAIRS * LENGTH)).double() + 1) / 2 * VOCAB).long().reshape(PAIRS, LENGTH)
    out = model(input_ids=ids, pixel_values=images, return_loss=True)
    out.loss.backward()
    tensors = split({name: parameter.grad for name, parameter in model.named_parameters()})
    lines = [f"loss\t{out.loss.item()!r}\t0"]
    for stream, (name, tensor) in enumerate(sorted(tensors.items())):
        numbers = tensor.flatten().numpy()
        dot = float(numbers @ uniform(1000 + stream, len(numbers)).astype(np.float64))
        lines.append(f"{name}\t{float(np.sqrt(numbers @ numbers))!r}\t{dot!r}")
    OUT.mkdir(exist_ok=True)
    (OUT / "siglip_step.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

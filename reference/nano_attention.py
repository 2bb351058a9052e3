"""What was done to the image encoder of nano between two runs of Stage 1, and how one sees that it was needed.

    python reference/nano_attention.py look MODEL PICTURES                # how sharp the encoder's attention is, how far it looks
    python reference/nano_attention.py positions MODEL OUT                # positions doubled, sines and cosines added
    python reference/nano_attention.py attention MODEL OUT PICTURES       # softer attention, two heads of three look near

MODEL and OUT are folders as `paligemma train RUN --export OUT --dtype f32` writes them, PICTURES is a folder of 112 × 112 PNG files
(`paligemma playground D --split train --seed 777 --count 300 --tasks detect --size 112`). See models/nano.md.

With torch 2.15.0 and transformers 5.24.0.
"""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file
from transformers import PaliGemmaForConditionalGeneration

SIDE = 8
"""Patches in a row of the picture."""
Y, X = (g.ravel().astype(np.float32) for g in np.mgrid[:SIDE, :SIDE])


def tower(model):
    """The image encoder, which answers with all that is within it."""
    model = PaliGemmaForConditionalGeneration.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    return model.eval().requires_grad_(False).model.vision_tower


def pixels(pictures, most):
    files = sorted(Path(pictures).glob("*.png"))[:most]
    x_bhwc = np.stack([np.asarray(Image.open(file).convert("RGB"), dtype=np.float32) / 127.5 - 1 for file in files])
    return torch.tensor(x_bhwc).permute(0, 3, 1, 2)


def look(model, pictures):
    """Of each layer and head: the entropy of what a patch looks at (all alike: ln 64 = 4.16), and how much of it is the patch and
    its eight neighbours (all alike: 0.12)."""
    far = np.maximum(abs(Y[:, None] - Y), abs(X[:, None] - X))
    near = torch.tensor(far <= 1).float()
    for layer, a_bhts in enumerate(tower(model)(pixels(pictures, 48), output_attentions=True).attentions):
        entropy = -(a_bhts * (a_bhts + 1e-9).log()).sum(-1).mean((0, 2))
        share = (a_bhts * near).sum(-1).mean((0, 2))
        print(layer, "entropy", *(f"{x:.2f}" for x in entropy), "near", *(f"{x:.2f}" for x in share))


def write(model, out, changed):
    """`model` with some tensors in place of its own."""
    shutil.copytree(model, out)
    tensors = load_file(Path(model) / "model.safetensors")
    for end, tensor in changed.items():
        (name,) = [name for name in tensors if "vision" in name and name.endswith(end)]
        tensors[name] = np.ascontiguousarray(tensor, dtype=np.float32)
    save_file(tensors, Path(out) / "model.safetensors", metadata={"format": "pt"})


def positions(model, out):
    """Twice what they are, and waves of 48 lengths from 3 to 40 patches along both axes, of deviation 1.6, turned by a random rotation."""
    end = "embeddings.position_embedding.weight"
    tensors = load_file(Path(model) / "model.safetensors")
    (own,) = [tensor for name, tensor in tensors.items() if name.endswith(end)]
    width = own.shape[1]
    n = width // 4
    frequency = 2 * np.pi / (3 * (40 / 3) ** (np.arange(n) / (n - 1)))
    waves = np.concatenate([wave(axis[:, None] * frequency) for axis in (X, Y) for wave in (np.sin, np.cos)], axis=1)
    waves -= waves.mean(0)
    waves = waves @ np.linalg.qr(np.random.default_rng(0).normal(size=(width, width)))[0]
    write(model, out, {end: own.mean(0) + 2 * (own - own.mean(0)) + 1.6 * waves / waves.std()})


def attention(model, out, pictures):
    """In all layers but the first, queries and keys times 0.3; and in two heads four of their numbers become the patch's coordinates,
    found in what the layer sees by least squares, so that exp(query · key / 8) is about exp(-distance² / 2σ²)."""
    encoder, x_bchw = tower(model), pixels(pictures, 300)
    y, x = torch.tensor(Y) - (SIDE - 1) / 2, torch.tensor(X) - (SIDE - 1) / 2
    wanted = torch.stack([y, x, y * y + x * x], 1).repeat(len(x_bchw), 1).double()
    changed = {}
    for number, layer in enumerate(encoder.encoder.layers[1:], 1):
        query, key = layer.self_attn.q_proj, layer.self_attn.k_proj
        for linear in (query, key):
            linear.weight.mul_(0.3)
            linear.bias.mul_(0.3)
        seen = layer.layer_norm1(encoder(x_bchw, output_hidden_states=True).hidden_states[number]).flatten(0, 1)
        seen = torch.cat([seen, torch.ones(len(seen), 1)], 1).double()
        gram = seen.T @ seen + 1e-3 * len(seen) * torch.eye(seen.shape[1], dtype=torch.double)
        found = torch.linalg.solve(gram, seen.T @ wanted).float()
        for head, sigma in enumerate((0.8, 1.3)):
            first, sharp = head * 64, 8 / (2 * sigma**2)
            for linear in (query, key):
                linear.weight[first : first + 4] = 0
                linear.bias[first : first + 4] = 0
                for axis in range(2):
                    linear.weight[first + axis] = math.sqrt(2 * sharp) * found[:-1, axis]
                    linear.bias[first + axis] = math.sqrt(2 * sharp) * found[-1, axis]
            query.bias[first + 2] = math.sqrt(sharp)
            key.weight[first + 2] = -math.sqrt(sharp) * found[:-1, 2]
            key.bias[first + 2] = -math.sqrt(sharp) * found[-1, 2]
        for name, linear in (("q", query), ("k", key)):
            for part in ("weight", "bias"):
                changed[f"layers.{number}.self_attn.{name}_proj.{part}"] = getattr(linear, part).numpy()
    write(model, out, changed)


{"look": look, "positions": positions, "attention": attention}[sys.argv[1]](*sys.argv[2:])

"""Makes goldens/masks/: what PyTorch makes of the masks' VQ-VAE, Pillow of pasted masks, pycocotools of run lengths.

    python reference/masks.py

Made with torch 2.15.0, Pillow 13.0.0, pycocotools 2.0.11, numpy 2.4.6, safetensors 0.8.0.

Weights, masks, boxes and polygons are not stored: `uniform` computes them, and paligemma/tests/it/masks.rs computes the
same. What must be equal to the bit is stored as the CRC-32 of its bytes.
"""

import math
import pathlib
import zlib

import numpy as np
import torch
from PIL import Image
from pycocotools import mask as coco
from safetensors.numpy import save_file
from torch import nn

OUT = pathlib.Path(__file__).resolve().parent.parent / "goldens" / "masks"
U64 = np.uint64


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


def integers(stream, bounds):
    """One integer below each bound."""
    keys = mixed((U64(stream) << U64(32)) + np.arange(len(bounds), dtype=U64))
    return [int(k >> U64(33)) % b for k, b in zip(keys, bounds)]


class ResBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 3, padding=1), nn.ReLU(), nn.Conv2d(c, c, 1)
        )

    def forward(self, x):
        return x + self.net(x)


def vqvae():
    """The published architecture; its state_dict has the published names but for the codebook."""
    down = [layer for i, o in [(1, 16), (16, 32), (32, 64), (64, 128)] for layer in (nn.Conv2d(i, o, 4, 2, 1), nn.ReLU())]
    up = [
        layer
        for i, o in [(128, 128), (128, 64), (64, 32), (32, 16)]
        for layer in (nn.ConvTranspose2d(i, o, 4, 2, 1), nn.ReLU())
    ]
    return nn.ModuleDict(
        {
            "encoder": nn.Sequential(*down, ResBlock(128), ResBlock(128), nn.Conv2d(128, 512, 1)),
            "decoder": nn.Sequential(
                nn.Conv2d(512, 128, 1), nn.ReLU(), ResBlock(128), ResBlock(128), *up, nn.Conv2d(16, 1, 1)
            ),
        }
    )


def weights(model):
    """Fills the model; tensors are numbered by their sorted names. Returns the codebook."""
    state = model.state_dict()
    names = sorted([*state, "_vq_vae._embedding"])
    for stream, name in enumerate(names):
        shape = (128, 512) if name == "_vq_vae._embedding" else tuple(state[name].shape)
        numbers = uniform(stream, math.prod(shape))
        if name == "_vq_vae._embedding":
            scale = 1.0
        elif name.endswith(".bias"):
            scale = 0.125
        else:
            # Four places of a transposed kernel fall on a pixel.
            transposed = name.startswith("decoder.") and shape[2:] == (4, 4)
            inputs = shape[0] * 4 if transposed else math.prod(shape[1:])
            scale = np.float32(math.sqrt(6 / inputs))
        numbers = (numbers * np.float32(scale)).reshape(shape)
        if name == "_vq_vae._embedding":
            codebook = numbers
        else:
            state[name] = torch.from_numpy(numbers)
    model.load_state_dict(state)
    return torch.from_numpy(codebook)


def soft_mask(stream):
    """64×64 in [0, 1]: blocks of 8 with noise at their borders cut to [0, 1]."""
    blocks = uniform(stream, 64).reshape(8, 8).repeat(8, 0).repeat(8, 1)
    noise = uniform(stream + 1, 4096).reshape(64, 64)
    return np.clip(np.float32(0.5) + blocks * np.float32(2) + noise * np.float32(0.25), 0, 1).astype(np.float32)


@torch.no_grad()
def of_vqvae():
    model = vqvae()
    codebook = weights(model)
    codes = np.array([integers(1000 + i, [128] * 16) for i in range(3)])
    quantized = codebook[torch.from_numpy(codes)].reshape(3, 4, 4, 512).permute(0, 3, 1, 2)
    decoded = model["decoder"](quantized)[:, 0]
    masks = torch.from_numpy(np.stack([soft_mask(2000 + 2 * i) for i in range(40)]))
    embedded = model["encoder"](2 * (masks[:, None] - 0.5)).permute(0, 2, 3, 1).reshape(40, 16, 512)
    nearest = torch.cdist(embedded.double(), codebook.double()).argmin(-1)
    print("decoded", decoded.abs().max().item(), "embedded", embedded.abs().max().item())
    print("codes used", len(nearest.unique()))
    two = torch.cdist(embedded.double(), codebook.double()).sort(-1).values
    print("closest call", ((two[..., 1] - two[..., 0]) / two[..., 0]).min().item())
    save_file(
        {
            "decoded": decoded.numpy(),
            "embedded": embedded[:2].contiguous().numpy(),
            "codes": nearest.numpy().astype(np.float32),
        },
        OUT / "vqvae.safetensors",
    )


def of_learning():
    """One step of learning on two masks, as AiT takes it, in f64; nothing that a ReLU of theirs takes is nearer to zero than 3e-5,
    so that rounding moves none over its kink. A line a number or tensor: its name, its norm, and its sum with
    weights in [-1, 1) that both sides compute."""
    model = vqvae()
    codebook = weights(model).double()
    model.double()
    masks = torch.from_numpy(np.stack([soft_mask(3490), soft_mask(3322)])).double()
    x = 2 * (masks[:, None] - 0.5)
    inputs = model["encoder"](x).permute(0, 2, 3, 1).reshape(-1, 512)
    codes = torch.cdist(inputs, codebook).argmin(-1)
    quantized = codebook[codes]
    commitment = 0.25 * nn.functional.mse_loss(quantized.detach(), inputs)
    quantized = inputs + (quantized - inputs).detach()
    decoded = model["decoder"](quantized.reshape(2, 4, 4, 512).permute(0, 3, 1, 2))
    reconstruction = nn.functional.mse_loss(decoded, x)
    (reconstruction + commitment).backward()
    chosen = nn.functional.one_hot(codes, 128).double()
    decay, small = 0.99, 1e-5
    counts = decay * torch.ones(128).double() + (1 - decay) * chosen.sum(0)
    sums = decay * codebook + (1 - decay) * chosen.T @ inputs.detach()
    size = (counts + small) / (counts.sum() + 128 * small) * counts.sum()
    lines = [f"reconstruction\t{reconstruction.item()!r}\t0", f"commitment\t{commitment.item()!r}\t0"]
    tensors = {name: parameter.grad for name, parameter in model.named_parameters()}
    tensors["_vq_vae._embedding"] = sums / size[:, None]
    for stream, (name, tensor) in enumerate(sorted(tensors.items())):
        numbers = tensor.double().flatten().numpy()
        dot = float(numbers @ uniform(5_000 + stream, len(numbers)).astype(np.float64))
        lines.append(f"{name}\t{float(np.sqrt(numbers @ numbers))!r}\t{dot!r}")
    (OUT / "vqvae_step.tsv").write_text("\n".join(lines) + "\n")


def crc(data):
    return f"{zlib.crc32(data):08x}"


def box(stream):
    """A picture's size and a box in bins, y_min x_min y_max x_max."""
    w, h, y0, y1, x0, x1 = integers(stream, [300, 300, 1023, 1023, 1023, 1023])
    y0, y1 = min(y0, y1), max(y0, y1) + 1
    x0, x1 = min(x0, x1), max(x0, x1) + 1
    return w + 1, h + 1, (y0, x0, y1, x1)


def of_pasting():
    """A line a case: the pasted mask as bytes 0 and 1, its run lengths."""
    lines = ["mask\trle"]
    for i in range(1000):
        w, h, bins = box(3_000_000 + i)
        values = uniform(3_100_000 + i, 4096).reshape(64, 64)
        y1, x1, y2, x2 = np.array(bins) / 1023
        y1, x1, y2, x2 = map(int, (y1 * h, x1 * w, y2 * h, x2 * w))
        mask = np.zeros((h, w), np.uint8)
        if x2 > x1 and y2 > y1:
            inside = np.asarray(Image.fromarray(values).resize([x2 - x1, y2 - y1], resample=Image.BILINEAR))
            mask[y1:y2, x1:x2] = inside > 0
        rle = coco.encode(np.asfortranarray(mask))
        assert rle["size"] == [h, w]
        lines.append(f"{crc(mask.tobytes())}\t{crc(rle['counts'])}")
    (OUT / "paste.tsv").write_text("\n".join(lines) + "\n")


def polygon(stream):
    """A picture's size and up to three polygons; corners lie on eighths of pixels, some of them outside."""
    w, h, count = integers(stream, [80, 80, 3])
    w, h = w + 1, h + 1
    polygons = []
    for p in range(count + 1):
        n = integers(stream + 10 + p, [9])[0] + 3
        numbers = integers(stream + 20 + p, [10 * w, 10 * h] * n)
        polygons.append([number / 8 - (w if j % 2 == 0 else h) / 8 for j, number in enumerate(numbers)])
    return w, h, polygons


def of_polygons():
    lines = ["rle"]
    for i in range(1000):
        w, h, polygons = polygon(4_000_000 + 100 * i)
        lines.append(crc(coco.merge(coco.frPyObjects(polygons, h, w))["counts"]))
    (OUT / "polygons.tsv").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    of_vqvae()
    of_learning()
    of_pasting()
    of_polygons()

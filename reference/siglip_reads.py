"""Whether transformers reads the towers that `paligemma train RUN --export` wrote, and finds the held-out loss that the run printed,
of the first caption of each.

    paligemma train nano-stage0-image out=run batch=4 examples=8 warmup_steps=0 eval_every=2 eval.examples=8 dtype=f32 save_every=0 \\
        siglip.vision.depth=2 siglip.vision.width=48 siglip.vision.mlp=96 siglip.text.depth=2 siglip.text.width=48 siglip.text.mlp=96
    paligemma train run --export towers
    paligemma playground drawn --split val --count 8 --size 112 --tasks caption
    python reference/siglip_reads.py towers drawn/val.jsonl 4          # pairs in a batch

With torch 2.15.0 and transformers 5.24.0: 3.4495205 beside our 3.4495207.
"""

import json
import sys
from pathlib import Path

import numpy as np
import sentencepiece
import torch
from PIL import Image
from transformers import SiglipModel

END = 1


def main(towers, lines, batch):
    model, read = SiglipModel.from_pretrained(towers, output_loading_info=True)
    wrong = {name: found for name, found in read.items() if found}
    if wrong:
        sys.exit(f"{towers}: {wrong}")
    tokens = sentencepiece.SentencePieceProcessor(str(towers / "tokenizer.model"))
    length = model.config.text_config.max_position_embeddings

    def ids(text):
        known = (tokens.encode(text) + [END])[:length]
        return known + [END] * (length - len(known))

    def pixels(image):
        x_hwc = np.asarray(Image.open(lines.parent / image).convert("RGB"), dtype=np.float32) / 127.5 - 1
        return torch.tensor(x_hwc).permute(2, 0, 1)

    pairs = [json.loads(line) for line in lines.read_text().splitlines()]
    losses = []
    for first in range(0, len(pairs), batch):
        some = pairs[first : first + batch]
        with torch.no_grad():
            logits = model(
                input_ids=torch.tensor([ids(pair["suffix"][0]) for pair in some]),
                pixel_values=torch.stack([pixels(pair["image"]) for pair in some]),
            ).logits_per_image
        signs = 2 * torch.eye(len(some)) - 1
        losses.append(-torch.nn.functional.logsigmoid(signs * logits).sum().item() / len(some))
    print(f"loss {sum(losses) / len(losses):.7f}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))

"""Prints how far transformers' own bf16 departs from its f32 on the tiny models: the measure for our bf16 drift.

    python reference/hf_bf16_drift.py goldens/model

Versions: transformers 5.23.0, torch 2.15.0. For each model and each of image_features, logits, loss: the largest difference
over the golden's largest magnitude, (a) all in bf16 as transformers runs it, (b) weights rounded to bf16, arithmetic in f32:
the part that no implementation can avoid.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import PaliGemmaForConditionalGeneration

root = Path(sys.argv[1])
for name in ["pg1_mqa", "pg1_gqa", "pg1_mha", "pg2", "pg2_27b_like"]:
    golden = load_file(root / f"hf_{name}.safetensors")
    inputs = {k: golden[k] for k in ["pixel_values", "input_ids", "token_type_ids", "attention_mask", "labels"]}
    line = [name]
    for arithmetic in [torch.bfloat16, torch.float32]:
        model = PaliGemmaForConditionalGeneration.from_pretrained(
            root / name, dtype=torch.bfloat16, attn_implementation="eager"
        )
        model = model.to(arithmetic).eval()
        x = dict(inputs, pixel_values=inputs["pixel_values"].to(arithmetic))
        with torch.no_grad():
            features = model.model.get_image_features(x["pixel_values"]).pooler_output
            out = model(**x)
        for key, ours in [("image_features", features), ("logits", out.logits), ("loss", out.loss)]:
            want = golden[key].float()
            rel = (ours.float() - want).abs().max() / want.abs().max()
            line.append(f"{key} {rel.item():.4f}")
    print(*line)

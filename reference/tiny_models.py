"""Makes the tiny random PaliGemma checkpoints under goldens/model/.

    python reference/tiny_models.py goldens/model [NAME ...]

Versions: transformers 5.23.0, torch 2.15.0, numpy 2.4.6, safetensors 0.8.0.

Each is a Hugging Face folder (config.json, model.safetensors or shards). The sizes are odd on purpose: widths that are
no multiple of a vector register, heads whose total is not the width, a table with rows beyond `<image>`. The weights are
random at a scale at which every part matters: attention is far from uniform, biases and norm weights are not zero, the
layers outweigh the token's own embedding (or greedy decoding would only repeat itself), soft caps bite, and the logits
have a standard deviation of 1 to 5. Ids as in the published vocabulary where they fit: 0 pad, 1 EOS, 2 BOS, 108 "\\n".

Weights come from numpy's PCG64, one stream a tensor seeded by its name. `eos_lift` adds to the EOS row a multiple of the
mean final hidden state over random prompts, so that answers end at different lengths; that mean is computed by
transformers, so a second run on another machine may differ in the last bits. The committed files are what counts.
"""

import json
import math
import sys
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

# name, dtype and file names of the folder; vision and text sizes; scales. `image_token` is the id of <image>; the
# rows from it on are padding.
MODELS = {
    # Gemma 1, one KV head; four heads of 10 beside a width of 38; names as in the checkpoints published in 2024.
    "pg1_mqa": dict(
        dtype="float32", names="2024", head=False, shards=1, vocab=120, image_token=112, caps=None,
        vision=dict(hidden_size=24, intermediate_size=29, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7),
        text=dict(model_type="gemma", hidden_size=38, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=10),
        eos_lift=4.0, pad_rows=0.02),
    # Gemma 1, two KV heads, an odd width everywhere; padding rows so strong that they would win if they could be chosen;
    # names with `model.` in front and the tied head written out; two shards.
    "pg1_gqa": dict(
        dtype="float32", names="2025", head=True, shards=2, vocab=120, image_token=112, caps=None,
        vision=dict(hidden_size=27, intermediate_size=31, num_hidden_layers=2, num_attention_heads=3, image_size=15, patch_size=5),
        text=dict(model_type="gemma", hidden_size=33, intermediate_size=29, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=6),
        eos_lift=0.0, pad_rows=3.0),
    # Gemma 1, as many KV heads as heads (big_vision then keeps one qkv_einsum); bf16; names as transformers 5.23 saves.
    "pg1_mha": dict(
        dtype="bfloat16", names="5.23", head=False, shards=1, vocab=120, image_token=112, caps=None,
        vision=dict(hidden_size=20, intermediate_size=26, num_hidden_layers=1, num_attention_heads=4, image_size=28, patch_size=14),
        text=dict(model_type="gemma", hidden_size=32, intermediate_size=41, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4, head_dim=8),
        eos_lift=0.0, pad_rows=0.02),
    # Gemma 2 with caps low enough to bite and a query scale of width/heads = 10 beside heads of 12.
    "pg2": dict(
        dtype="float32", names="2024", head=False, shards=1, vocab=120, image_token=112, caps=(5.0, 8.0),
        vision=dict(hidden_size=24, intermediate_size=29, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7),
        text=dict(model_type="gemma2", hidden_size=40, intermediate_size=29, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=10),
        eos_lift=2.5, pad_rows=0.02),
    # Gemma 2 in the proportions of 27B: heads * head_dim is not the width, the query scale is width/heads, and the caps
    # are the published 50 and 30; f16; three shards.
    "pg2_27b_like": dict(
        dtype="float16", names="2025", head=False, shards=3, vocab=120, image_token=112, caps=(50.0, 30.0),
        vision=dict(hidden_size=18, intermediate_size=25, num_hidden_layers=2, num_attention_heads=2, image_size=21, patch_size=7),
        text=dict(model_type="gemma2", hidden_size=42, intermediate_size=27, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, head_dim=6, query_pre_attn_scalar=7),
        eos_lift=0.0, pad_rows=0.02),
    # Gemma 2 for more than 4096 tokens: patches of one pixel make 64x64 = 4096 image tokens. The table has 7 rows and
    # <image> lies beyond it, as transformers allows; bf16.
    "pg2_long": dict(
        dtype="bfloat16", names="2024", head=False, shards=1, vocab=7, image_token=9, caps=(50.0, 30.0),
        vision=dict(hidden_size=4, intermediate_size=11, num_hidden_layers=1, num_attention_heads=1, image_size=64, patch_size=1),
        text=dict(model_type="gemma2", hidden_size=16, intermediate_size=20, num_hidden_layers=3, num_attention_heads=2, num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, sliding_window=4096),
        eos_lift=0.0, pad_rows=0.02),
}


def config_json(m):
    """As terse as the published files: what is left out takes transformers' defaults."""
    text = dict(m["text"], vocab_size=m["vocab"])
    if m["caps"]:
        text |= dict(attn_logit_softcapping=m["caps"][0], final_logit_softcapping=m["caps"][1])
        text.setdefault("sliding_window", 4096)
    vision = dict(m["vision"], model_type="siglip_vision_model", vision_use_head=False, projection_dim=text["hidden_size"])
    return dict(
        architectures=["PaliGemmaForConditionalGeneration"], model_type="paligemma", bos_token_id=2, eos_token_id=1,
        pad_token_id=0, hidden_size=text["hidden_size"], projection_dim=text["hidden_size"],
        image_token_index=m["image_token"], torch_dtype=m["dtype"], text_config=text, vision_config=vision)


def draw(name, shape, m):
    """One tensor by its name in transformers 5.23."""
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    z = rng.standard_normal(shape)
    gemma2 = m["text"]["model_type"] == "gemma2"
    if "language_model" in name:
        if name.endswith("embed_tokens.weight"):
            e = z * 1.2 / math.sqrt(shape[1])
            # The padding rows of a published table are nearly zero; some of ours are strong instead.
            e[m["image_token"]:] *= m["pad_rows"]
            return e
        if "norm.weight" in name or "layernorm.weight" in name:
            # The final norm lifts the logits; Gemma 2's post-norms set how much a layer says.
            lift = 1.5 if name.endswith("model.norm.weight") else 1.2 if gemma2 and "post_" in name else 0.0
            return lift + 0.3 * z
        gain = {"q_proj": 2.0, "k_proj": 2.0, "v_proj": 1.5, "o_proj": 2.0, "gate_proj": 1.5, "up_proj": 1.5, "down_proj": 2.0}
        return z * gain[name.split(".")[-2]] / math.sqrt(shape[1])
    if "norm" in name:
        return (1.0 if name.endswith("weight") else 0.0) + 0.2 * z
    if "position_embedding" in name:
        return 0.6 * z
    if name.endswith("bias"):
        return 0.3 * z
    gain = {"patch_embedding": 1.6, "linear": 1.6, "q_proj": 1.6, "k_proj": 1.6}.get(name.split(".")[-2], 1.3)
    return z * gain / math.sqrt(math.prod(shape[1:]))


def lift_eos(model, m):
    """Adds eos_lift * mean/|mean|^2 of the final hidden state to the EOS row, so that its logit rises by about eos_lift."""
    c, g = model.config, torch.Generator().manual_seed(5)
    n = c.text_config.num_image_tokens
    size = c.vision_config.image_size
    states = []
    for _ in range(16):
        text = torch.randint(3, m["image_token"], (1, 12), generator=g)
        ids = torch.cat([torch.full((1, n), c.image_token_id), text], 1)
        types = torch.zeros_like(ids)
        types[:, n + 4:] = 1
        pixels = torch.rand(1, 3, size, size, generator=g) * 2 - 1
        out = model.model(input_ids=ids, pixel_values=pixels, token_type_ids=types)
        states.append(out.last_hidden_state[0, n + 4:])
    mean = torch.cat(states).mean(0)
    model.model.language_model.embed_tokens.weight[1] += m["eos_lift"] * mean / mean.dot(mean)


def file_name(name, style):
    """The name of a tensor in a folder: as published in 2024, with `model.` in front (2025), or as 5.23 saves."""
    if style != "5.23":
        name = name.replace("vision_tower.", "vision_tower.vision_model.")
    if style == "2025":
        return name
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    return name.replace("model.language_model.", "language_model.model.").removeprefix("model.")


def main(out, names):
    torch.set_grad_enabled(False)
    for name, m in MODELS.items():
        if names and name not in names:
            continue
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        config = config_json(m)
        (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
        model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**config)).float().eval()
        for key, p in model.named_parameters():
            p.copy_(torch.from_numpy(draw(key, tuple(p.shape), m)).float())
        if m["eos_lift"]:
            lift_eos(model, m)
        dtype = getattr(torch, m["dtype"])
        tensors = {file_name(k, m["names"]): v.to(dtype).clone().contiguous() for k, v in model.state_dict().items()
                   if m["head"] or k != "lm_head.weight"}
        keys = sorted(tensors)
        shards = [keys[i::m["shards"]] for i in range(m["shards"])]
        if len(shards) == 1:
            save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        else:
            where = {}
            for i, part in enumerate(shards, 1):
                file = f"model-{i:05}-of-{len(shards):05}.safetensors"
                save_file({k: tensors[k] for k in part}, folder / file, metadata={"format": "pt"})
                where |= {k: file for k in part}
            size = sum(t.numel() * t.element_size() for t in tensors.values())
            index = dict(metadata=dict(total_size=size), weight_map=dict(sorted(where.items())))
            (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")
        print(f"{name}: {sum(t.numel() for t in tensors.values())} values in {len(tensors)} tensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

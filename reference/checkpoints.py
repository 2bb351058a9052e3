"""Makes goldens/checkpoint: the same tiny random models as other programs write them.

    python reference/checkpoints.py goldens/checkpoint

numpy 2.4.6, ml_dtypes 0.6.0, torch 2.15.0, transformers 5.23.0, safetensors 0.8.

Three models, each as a Hugging Face folder and as big_vision npz files with the same numbers (the npz
without the embedding rows from <image> on):

    gemma1-mqa  f32   folder by save_pretrained            mqa.npz (params/), mqa-deflated.npz (no params/)
    gemma1-mha  f16   one file with the old names, a       mha.npz (no params/, qkv_einsum)
                      tied lm_head and position_ids
    gemma2-gqa  bf16  shards by save_pretrained            gqa.npz (void), gqa-split.npz.part0..2

Which number goes where is not taken from a table: the script applies big_vision's einsums and dots
(models/ppp/gemma.py, models/vit.py by flax.linen) to random inputs and compares with what torch's layers make.
"""

import pathlib
import shutil
import sys

import ml_dtypes
import numpy as np
import safetensors.torch
import torch
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

OUT = pathlib.Path(sys.argv[1])
IMAGE = 20  # the id of <image>, and so the rows of big_vision's table


def make(seed, text, dtype):
    torch.manual_seed(seed)
    vision = dict(image_size=9, patch_size=3, hidden_size=6, intermediate_size=10, num_hidden_layers=2,
                  num_attention_heads=2, vision_use_head=False)
    text = dict(vocab_size=IMAGE + 4, hidden_size=12, intermediate_size=14, num_hidden_layers=3, head_dim=4,
                num_attention_heads=4, **text)
    config = PaliGemmaConfig(vision_config=vision, text_config=text, image_token_index=IMAGE,
                             projection_dim=12, hidden_size=12)
    model = PaliGemmaForConditionalGeneration(config)
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    return model.to(dtype)


def to_big_vision(model):
    """big_vision's tensors of the model, f32, each tried against the torch layer that it comes from."""
    rng = np.random.default_rng(0)
    vit, text = model.model.vision_tower, model.model.language_model
    vit = getattr(vit, "vision_model", vit)
    out = {}

    def array(p):
        return p.detach().float().numpy()

    def try_linear(layer, contract, width):
        x = rng.normal(size=(2, width)).astype(np.float32)
        with torch.no_grad():
            w, b = layer.weight.float(), getattr(layer, "bias", None)
            y = torch.nn.functional.linear(torch.from_numpy(x), w, None if b is None else b.float()).numpy()
        np.testing.assert_allclose(contract(x).reshape(y.shape), y, rtol=1e-4, atol=1e-4)

    # img: nn.Conv (HWIO), pos_embedding, stacked Encoder1DBlocks, encoder_norm, head.
    conv = vit.embeddings.patch_embedding
    kernel = array(conv.weight).transpose(2, 3, 1, 0)
    patch = rng.normal(size=kernel.shape[:3]).astype(np.float32)
    with torch.no_grad():
        y = torch.nn.functional.conv2d(torch.from_numpy(patch.transpose(2, 0, 1)[None]), conv.weight.float(),
                                       conv.bias.float()).numpy().reshape(-1)
    np.testing.assert_allclose(np.einsum("hwc,hwcd->d", patch, kernel) + array(conv.bias), y, rtol=1e-4, atol=1e-4)
    out["img/embedding/kernel"], out["img/embedding/bias"] = kernel, array(conv.bias)
    out["img/pos_embedding"] = array(vit.embeddings.position_embedding.weight)[None]
    width, heads = vit.config.hidden_size, vit.config.num_attention_heads
    stack = {}

    def put(key, value):
        stack.setdefault(key, []).append(value)

    for layer in vit.encoder.layers:
        block = "img/Transformer/encoderblock/"
        for i, norm in enumerate([layer.layer_norm1, layer.layer_norm2]):
            put(f"{block}LayerNorm_{i}/scale", array(norm.weight))
            put(f"{block}LayerNorm_{i}/bias", array(norm.bias))
        for theirs, proj in dict(query=layer.self_attn.q_proj, key=layer.self_attn.k_proj,
                                 value=layer.self_attn.v_proj).items():
            k = array(proj.weight).T.reshape(width, heads, -1)
            b = array(proj.bias).reshape(heads, -1)
            try_linear(proj, lambda x: np.einsum("bd,dnh->bnh", x, k) + b, width)
            put(f"{block}MultiHeadDotProductAttention_0/{theirs}/kernel", k)
            put(f"{block}MultiHeadDotProductAttention_0/{theirs}/bias", b)
        proj = layer.self_attn.out_proj
        k = array(proj.weight).T.reshape(heads, -1, width)
        try_linear(proj, lambda x: np.einsum("bnh,nhd->bd", x.reshape(2, heads, -1), k) + array(proj.bias), width)
        put(f"{block}MultiHeadDotProductAttention_0/out/kernel", k)
        put(f"{block}MultiHeadDotProductAttention_0/out/bias", array(proj.bias))
        for i, fc in enumerate([layer.mlp.fc1, layer.mlp.fc2]):
            try_linear(fc, lambda x: x @ array(fc.weight).T + array(fc.bias), fc.in_features)
            put(f"{block}MlpBlock_0/Dense_{i}/kernel", array(fc.weight).T)
            put(f"{block}MlpBlock_0/Dense_{i}/bias", array(fc.bias))
    out["img/Transformer/encoder_norm/scale"] = array(vit.post_layernorm.weight)
    out["img/Transformer/encoder_norm/bias"] = array(vit.post_layernorm.bias)
    head = model.model.multi_modal_projector.linear
    try_linear(head, lambda x: x @ array(head.weight).T + array(head.bias), width)
    out["img/head/kernel"], out["img/head/bias"] = array(head.weight).T, array(head.bias)

    # llm: Embedder, stacked Blocks, final_norm.
    config = text.config
    n, kv, h, d = config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.hidden_size
    out["llm/embedder/input_embedding"] = array(text.embed_tokens.weight)[:IMAGE]
    for layer in text.layers:
        attn, mlp, block = layer.self_attn, layer.mlp, "llm/layers/"
        q, k, v = (array(p.weight).reshape(-1, h, d).transpose(0, 2, 1)
                   for p in (attn.q_proj, attn.k_proj, attn.v_proj))
        try_linear(attn.q_proj, lambda x: np.einsum("TD,NDH->TNH", x, q), d)
        try_linear(attn.k_proj, lambda x: np.einsum("SD,KDH->SKH", x, k), d)
        try_linear(attn.v_proj, lambda x: np.einsum("SD,KDH->SKH", x, v), d)
        if n == kv:
            put(f"{block}attn/qkv_einsum/w", np.stack([q, k, v]))
        else:
            put(f"{block}attn/q_einsum/w", q)
            put(f"{block}attn/kv_einsum/w", np.stack([k, v]))
        vec = array(attn.o_proj.weight).reshape(d, n, h).transpose(1, 2, 0)
        try_linear(attn.o_proj, lambda x: np.einsum("TNH,NHD->TD", x.reshape(2, n, h), vec), n * h)
        put(f"{block}attn/attn_vec_einsum/w", vec)
        gating = np.stack([array(mlp.gate_proj.weight).T, array(mlp.up_proj.weight).T])
        try_linear(mlp.gate_proj, lambda x: x @ gating[0], d)
        try_linear(mlp.up_proj, lambda x: x @ gating[1], d)
        put(f"{block}mlp/gating_einsum", gating)
        put(f"{block}mlp/linear", array(mlp.down_proj.weight).T)
        # Gemma 2 in transformers: input, post-attention, pre- and post-feed-forward norms, in this order.
        if config.model_type == "gemma2":
            norms = dict(pre_attention_norm=layer.input_layernorm, post_attention_norm=layer.post_attention_layernorm,
                         pre_ffw_norm=layer.pre_feedforward_layernorm, post_ffw_norm=layer.post_feedforward_layernorm)
        else:
            norms = dict(pre_attention_norm=layer.input_layernorm, pre_ffw_norm=layer.post_attention_layernorm)
        for theirs, norm in norms.items():
            put(f"{block}{theirs}/scale", array(norm.weight))
    out["llm/final_norm/scale"] = array(text.norm.weight)
    out.update({key: np.stack(values) for key, values in stack.items()})
    return {key: np.ascontiguousarray(value) for key, value in sorted(out.items())}


def arrays(model, dtype, prefix):
    return {prefix + key: value.astype(dtype) for key, value in to_big_vision(model).items()}


def forget_generation(folder):
    (folder / "generation_config.json").unlink(missing_ok=True)


shutil.rmtree(OUT, ignore_errors=True)
OUT.mkdir(parents=True)

mqa = make(1, dict(model_type="gemma", num_key_value_heads=1), torch.float32)
mqa.save_pretrained(OUT / "gemma1-mqa")
np.savez(OUT / "mqa.npz", **arrays(mqa, np.float32, "params/"))
np.savez_compressed(OUT / "mqa-deflated.npz", **arrays(mqa, np.float32, ""))

mha = make(2, dict(model_type="gemma", num_key_value_heads=4), torch.float16)
mha.save_pretrained(OUT / "gemma1-mha")
old = {}
for name, tensor in mha.state_dict().items():
    name = name.replace("model.vision_tower.vision_model.", "model.vision_tower.")
    for new, was in [("model.language_model.", "language_model.model."), ("lm_head.", "language_model.lm_head."),
                     ("model.vision_tower.", "vision_tower.vision_model."), ("model.multi", "multi")]:
        if name.startswith(new):
            name = was + name[len(new):]
            break
    old[name] = tensor.clone()
assert "language_model.lm_head.weight" in old
old["vision_tower.vision_model.embeddings.position_ids"] = torch.arange(9)[None]
safetensors.torch.save_file(old, OUT / "gemma1-mha" / "model.safetensors", {"format": "pt"})
np.savez(OUT / "mha.npz", **arrays(mha, np.float16, ""))

gqa = make(3, dict(model_type="gemma2", num_key_value_heads=2, query_pre_attn_scalar=4), torch.bfloat16)
gqa.save_pretrained(OUT / "gemma2-gqa", max_shard_size="5KB")
np.savez(OUT / "gqa.npz", **arrays(gqa, ml_dtypes.bfloat16, "params/"))
whole = (OUT / "gqa.npz").read_bytes()
for i, (start, end) in enumerate([(0, 5001), (5001, 5002), (5002, len(whole))]):
    (OUT / f"gqa-split.npz.part{i}").write_bytes(whole[start:end])

for folder in OUT.iterdir():
    if folder.is_dir():
        forget_generation(folder)

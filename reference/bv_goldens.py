"""Makes goldens with big_vision's own JAX model on the weights and inputs of hf_goldens.py.

    python reference/bv_goldens.py --big-vision DIR goldens/model [NAME ...]

DIR is a checkout of google-research/big_vision (0127fb6). Versions: jax 0.10.2, flax 0.12.8, numpy 2.4.6,
safetensors 0.8.0, and what big_vision imports (ml_collections, einops, orbax-checkpoint, tensorflow, absl-py).

The model is `big_vision.models.proj.paligemma.paligemma.Model`, unchanged; only `gemma.get_config` is replaced, as the
published sizes are the only ones it knows. The table has the same number of rows on both sides, all of them logits.

    bv_<case>.safetensors   as hf_<case> (same inputs): image_features = out["img/zimg"], logits = out["llm/logits"] over
                            the whole sequence, after the final soft cap; loss (see below) for Gemma 1.
                            big_vision knows no sliding window, so bv_pg2_window_off and bv_pg2_long have the inputs of
                            hf_pg2_window12 and hf_pg2_long_window4096, and other logits.
    taps_<model>.safetensors  what the model names in `out`, for one Gemma 1 and one Gemma 2 model, under big_vision's
                            names; the blocks of the encoder as img/encoder/block00/sa and so on. llm/logits is in bv_<model>.
    bv_text_pg2.safetensors `text_logits` [1,T_text,V], what Model.__call__ returns for the text tokens, and `text_loss`
                            [1], big_vision's training loss.

Gemma 2's final soft cap. `Model.__call__` takes its text logits from `compute_logits`, which returns before the cap; so
big_vision trains without the final cap whatever `final_logits_softcap` says, and its decoding has it on every
token but the first (prefill_cache calls compute_logits, extend_cache does not). transformers caps everywhere. For Gemma 2
the two losses are therefore two rules: `loss` in hf_pg2 (capped) and `text_loss` here (uncapped), and bv_pg2 has none.
"""

import argparse
import json
import sys
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--big-vision", required=True)
parser.add_argument("out", type=Path)
parser.add_argument("names", nargs="*")
args = parser.parse_args()
sys.path.insert(0, args.big_vision)

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
from safetensors.flax import load_file as load_jax
from safetensors.numpy import load_file, save_file

from big_vision.models.ppp import gemma
from big_vision.models.proj.paligemma import paligemma

# golden of ours: golden of hf_goldens.py with the same inputs, and the model.
CASES = {
    "pg1_mqa": ("pg1_mqa", "pg1_mqa"),
    "pg1_gqa": ("pg1_gqa", "pg1_gqa"),
    "pg1_mha": ("pg1_mha", "pg1_mha"),
    "pg2": ("pg2", "pg2"),
    "pg2_27b_like": ("pg2_27b_like", "pg2_27b_like"),
    "pg2_two_images": ("pg2_two_images", "pg2"),
    "pg2_window_off": ("pg2_window12", "pg2"),
    "pg2_long": ("pg2_long_window4096", "pg2_long"),
}
TAPS = ("pg1_mqa", "pg2")


def tensors(folder):
    """All tensors of a folder in f32, under one style of names: vision.*, text.*, projector.*."""
    found = {}
    for file in folder.glob("*.safetensors"):
        for k, v in load_jax(file).items():
            k = k.removeprefix("model.").replace("language_model.model.", "language_model.").replace("vision_model.", "")
            if not k.endswith("lm_head.weight"):  # tied to the embedding
                found[k] = np.asarray(v, np.float32)
    return found


def params(config, t):
    """big_vision's tree, layers stacked as in the published npz files."""
    text, vision = config["text_config"], config["vision_config"]
    heads, kv, size, width = text["num_attention_heads"], text["num_key_value_heads"], text["head_dim"], text["hidden_size"]
    v_heads, v_width = vision["num_attention_heads"], vision["hidden_size"]
    take = lambda k: t.pop(k)

    def linear(k):
        return {"kernel": take(f"{k}.weight").T, "bias": take(f"{k}.bias")}

    def norm(k):
        return {"scale": take(f"{k}.weight"), "bias": take(f"{k}.bias")}

    def vision_block(i):
        k = f"vision_tower.encoder.layers.{i}."
        attention = {}
        for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj")):
            p = linear(f"{k}self_attn.{theirs}")
            attention[ours] = {"kernel": p["kernel"].reshape(v_width, v_heads, -1), "bias": p["bias"].reshape(v_heads, -1)}
        p = linear(f"{k}self_attn.out_proj")
        attention["out"] = {"kernel": p["kernel"].reshape(v_heads, -1, v_width), "bias": p["bias"]}
        return {
            "LayerNorm_0": norm(f"{k}layer_norm1"), "LayerNorm_1": norm(f"{k}layer_norm2"),
            "MultiHeadDotProductAttention_0": attention,
            "MlpBlock_0": {"Dense_0": linear(f"{k}mlp.fc1"), "Dense_1": linear(f"{k}mlp.fc2")}}

    def text_block(i):
        k = f"language_model.layers.{i}."
        q, key, value = (take(f"{k}self_attn.{n}_proj.weight").reshape(-1, size, width).transpose(0, 2, 1) for n in "qkv")
        attention = {"attn_vec_einsum": {"w": take(f"{k}self_attn.o_proj.weight").reshape(width, heads, size).transpose(1, 2, 0)}}
        if kv == heads:
            attention["qkv_einsum"] = {"w": np.stack([q, key, value])}
        else:
            attention |= {"q_einsum": {"w": q}, "kv_einsum": {"w": np.stack([key, value])}}
        gate, up, down = (take(f"{k}mlp.{n}_proj.weight").T for n in ("gate", "up", "down"))
        norms = {"pre_attention_norm": "input", "pre_ffw_norm": "post_attention"}
        if text["model_type"] == "gemma2":
            norms |= {"post_attention_norm": "post_attention", "pre_ffw_norm": "pre_feedforward", "post_ffw_norm": "post_feedforward"}
        return {
            "attn": attention, "mlp": {"gating_einsum": np.stack([gate, up]), "linear": down},
            **{ours: {"scale": take(f"{k}{theirs}_layernorm.weight")} for ours, theirs in norms.items()}}

    stack = lambda block, n: jax.tree.map(lambda *x: np.stack(x), *(block(i) for i in range(n)))
    tree = {
        "img": {
            "embedding": {"kernel": take("vision_tower.embeddings.patch_embedding.weight").transpose(2, 3, 1, 0),
                          "bias": take("vision_tower.embeddings.patch_embedding.bias")},
            "pos_embedding": take("vision_tower.embeddings.position_embedding.weight")[None],
            "Transformer": {"encoderblock": stack(vision_block, vision["num_hidden_layers"]),
                            "encoder_norm": norm("vision_tower.post_layernorm")},
            "head": linear("multi_modal_projector.linear")},
        "llm": {
            "embedder": {"input_embedding": take("language_model.embed_tokens.weight")},
            "final_norm": {"scale": take("language_model.norm.weight")},
            "layers": stack(text_block, text["num_hidden_layers"])}}
    assert not t, sorted(t)
    return tree


def load(folder):
    config = json.loads((folder / "config.json").read_text())
    text, vision = config["text_config"], config["vision_config"]
    width, heads = text["hidden_size"], text["num_attention_heads"]
    gemma2 = {}
    if text["model_type"] == "gemma2":
        scale = text["query_pre_attn_scalar"]
        assert scale in (text["head_dim"], width // heads), "big_vision has these two query scales only"
        gemma2 = dict(
            post_norms=True, attn_logits_softcap=text["attn_logit_softcapping"], final_logits_softcap=text["final_logit_softcapping"],
            query_pre_attn_norm="rsqrt_head_dim" if scale == text["head_dim"] else "rsqrt_emb_per_head")
    gemma.get_config = lambda variant: ml_collections.ConfigDict(dict(
        variant=variant, width=width, depth=text["num_hidden_layers"], mlp_dim=text["intermediate_size"],
        num_heads=heads, num_kv_heads=text["num_key_value_heads"], head_dim=text["head_dim"], norm_eps=1e-6,
        vocab_size=text["vocab_size"], scan=True, remat_policy="none", **gemma2))
    Frozen = lambda **kw: ml_collections.FrozenConfigDict(kw)  # hashable, as predict_fns needs
    model = paligemma.Model(
        img=Frozen(patch_size=(vision["patch_size"],) * 2, width=vision["hidden_size"], depth=vision["num_hidden_layers"],
                 mlp_dim=vision["intermediate_size"], num_heads=vision["num_attention_heads"], pool_type="none", scan=True),
        # The cache is bf16 by default; these are goldens in f32.
        llm=Frozen(variant=folder.name, scan=True, remat_policy="none", cache_dtype=None))
    return config, model, jax.tree.map(jnp.asarray, params(config, tensors(folder)))


def text_of(config, golden):
    """Images [1,H,W,3] or [1,n,H,W,3], text tokens and mask_ar: big_vision has no placeholders."""
    image = golden["pixel_values"].transpose(0, 2, 3, 1)
    is_text = golden["input_ids"][0] != config["image_token_index"]
    text = golden["input_ids"][:, is_text].astype(np.int32)
    return (image if len(image) == 1 else image[None]), text, golden["token_type_ids"][:, is_text].astype(np.int32)


def loss(text_logits, text, mask_loss):
    """The lines of big_vision's loss_fn after the model (trainers/proj/paligemma/train.py), for one example."""
    logp = jax.nn.log_softmax(text_logits[:, :-1], axis=-1)
    nll = -jnp.take_along_axis(logp, text[:, 1:, None], -1)[..., 0] * mask_loss[:, 1:]
    return (nll.sum(-1) / mask_loss[:, 1:].sum(-1)).mean()


def named(tree, name=""):
    """The arrays of `out`, under big_vision's names joined by slashes."""
    if not isinstance(tree, dict):
        return {name: np.asarray(tree, np.float32)}
    return {k: v for part in tree for k, v in named(tree[part], f"{name}/{part}" if name else part).items()}


def main():
    out_dir = args.out
    for case, (like, name) in CASES.items():
        if args.names and case not in args.names:
            continue
        config, model, p = load(out_dir / name)
        golden = load_file(out_dir / f"hf_{like}.safetensors")
        image, text, mask_ar = text_of(config, golden)
        text_logits, out = jax.jit(model.apply)({"params": p}, image, text, mask_ar)
        features, logits = np.asarray(out["img/zimg"]), np.asarray(out["llm/logits"])
        text_loss = np.asarray(loss(text_logits, text, mask_ar)).reshape(1)
        made = {"image_features": features.reshape(len(golden["pixel_values"]), -1, features.shape[-1]), "logits": logits}
        gemma1 = config["text_config"]["model_type"] == "gemma"
        if gemma1:
            made["loss"] = text_loss
        report = {k: float(abs(made[k] - golden[k]).max() / abs(golden[k]).max()) for k in made if k in golden}
        inputs = {k: golden[k] for k in ("pixel_values", "input_ids", "token_type_ids", "attention_mask", "labels") if k in golden}
        if case == "pg2_long":
            del made["image_features"]
        save_file({k: np.ascontiguousarray(v) for k, v in (inputs | made).items()}, out_dir / f"bv_{case}.safetensors")
        print(case, "from transformers:", json.dumps(report), "" if gemma1 else f"loss without the cap {text_loss[0]:.4f}, transformers' {golden.get('loss')}")
        if case in TAPS:
            keep = {k: v for k, v in named({k: v for k, v in out.items() if k.startswith(("img/", "llm/"))}).items()
                    if not k.endswith(("_2d", "img/pre_logits", "img/logits", "logits_pre_norm", "llm/logits"))}
            save_file(keep, out_dir / f"taps_{case}.safetensors")
            print("  taps", {k: v.shape for k, v in keep.items()})
        if case == "pg2":
            save_file({"text_logits": np.asarray(text_logits), "text_loss": text_loss}, out_dir / "bv_text_pg2.safetensors")
        if case == "pg1_mqa":
            grads = jax.grad(lambda p: loss(model.apply({"params": p}, image, text, mask_ar)[0], text, mask_ar))(p)
            ours = np.asarray(grads["llm"]["embedder"]["input_embedding"])
            theirs = golden["grad/model.language_model.embed_tokens.weight"]
            print("  gradient of the table, from transformers:", float(abs(ours - theirs).max() / abs(theirs).max()))
            ours = np.asarray(grads["img"]["embedding"]["kernel"]).transpose(3, 2, 0, 1)
            theirs = golden["grad/model.vision_tower.embeddings.patch_embedding.weight"]
            print("  gradient of the patch kernel, from transformers:", float(abs(ours - theirs).max() / abs(theirs).max()))


if __name__ == "__main__":
    main()

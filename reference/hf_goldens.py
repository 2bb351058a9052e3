"""Makes goldens with transformers, in the format that `paligemma verify` reads.

    python reference/hf_goldens.py goldens/model [NAME ...]

Versions: transformers 5.23.0, torch 2.15.0, safetensors 0.8.0. Needs the folders of tiny_models.py beside it.

For each case below, goldens/model/hf_<case>.safetensors with
    pixel_values    f32 [n,3,H,W]  n images, one after the other in the prompt (n = 1 in all but one case)
    input_ids       i64 [1,T]      with one placeholder for each image token
    token_type_ids  i64 [1,T]      0 image and prefix, 1 suffix
    attention_mask  i64 [1,T]      0 on left padding
    labels          i64 [1,T]      -100 is ignored; shifted by one inside the loss
    image_features  f32 [n,N,D]    the projector's output (pooler_output of get_image_features), not scaled
    logits          f32 [1,T,V]    after the final soft cap, over all rows of the table
    loss            f32 [1]        mean over the labelled tokens
    grad/<name>     f32            of the loss, for the cases that ask for it, names as transformers 5.23 has them
`labels` and `attention_mask` are left out of the long case to keep it small, and so are its image features.

Everything is computed in f32 from the weights as stored (bf16 and f16 widened), with eager attention; the same is
computed in f64 (where transformers keeps norms, rotary angles and softmax in f32) and, for Gemma 1, with SDPA in f32, and
the differences printed. transformers refuses Gemma 2 with SDPA, which has no soft cap.

A query at a padded position sees nothing; what transformers puts there is no answer to anything. In the padded case
compare only where attention_mask is 1.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import PaliGemmaConfig, PaliGemmaForConditionalGeneration

# case: model, and what departs from the default of one image, 7 prefix and 9 suffix tokens, no gradients.
CASES = {
    "pg1_mqa": dict(model="pg1_mqa", grad=True),
    "pg1_gqa": dict(model="pg1_gqa"),
    "pg1_mha": dict(model="pg1_mha"),
    "pg2": dict(model="pg2", grad=True),
    "pg2_27b_like": dict(model="pg2_27b_like"),
    "pg2_two_images": dict(model="pg2", images=2),
    "pg1_mqa_padded": dict(model="pg1_mqa", padding=5),
    # The sliding window of 12 on every other layer: the image and prefix stay joined, the suffix forgets them.
    "pg2_window12": dict(model="pg2", window=12, suffix=24),
    # 4096 image tokens, then text; the window of 4096 bites on the last ones.
    "pg2_long_window4096": dict(model="pg2_long", prefix=12, suffix=60, long=True),
}


def load(folder, dtype=torch.float32, attention="eager", window=None):
    """The model, and a proof that every tensor of the folder was used and none was made up."""
    config = PaliGemmaConfig.from_pretrained(folder)
    if window:
        config.text_config.sliding_window = window
    model, info = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, config=config, dtype=dtype, attn_implementation=attention, output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    return model.eval()


def inputs(net, seed, *, images=1, prefix=7, suffix=9, padding=0, **_):
    """One example: [pad] image BOS prefix "\\n" | suffix EOS."""
    c = net.config
    vision, first_pad_row = c.vision_config, min(c.image_token_id, c.text_config.vocab_size)
    g = torch.Generator().manual_seed(seed)
    size, n = vision.image_size, images * c.text_config.num_image_tokens
    pixels = torch.randint(0, 256, (images, 3, size, size), generator=g).float() / 127.5 - 1
    word = lambda k: torch.randint(3, first_pad_row, (k,), generator=g)
    newline = torch.tensor([108 if first_pad_row > 108 else 3])
    ids = torch.cat([
        torch.full((padding,), 0), torch.full((n,), c.image_token_id), torch.tensor([2]), word(prefix), newline,
        word(suffix), torch.tensor([1])])[None]
    at = padding + n + prefix + 2
    types = (torch.arange(ids.shape[1]) >= at).long()[None]
    labels = torch.where(types == 1, ids, -100)
    mask = (torch.arange(ids.shape[1]) >= padding).long()[None]
    return dict(pixel_values=pixels, input_ids=ids, token_type_ids=types, attention_mask=mask, labels=labels)


def answer(model, x):
    dtype = model.dtype
    x = dict(x, pixel_values=x["pixel_values"].to(dtype))
    out = model(**x)
    features = model.get_image_features(x["pixel_values"]).pooler_output
    return dict(image_features=features, logits=out.logits, loss=out.loss.reshape(1))


def apart(a, b, where=slice(None)):
    return {k: float((a[k][..., where, :] - b[k][..., where, :] if k == "logits" else a[k] - b[k]).abs().max() / b[k].abs().max()) for k in b}


def main(out, names):
    for n, (case, spec) in enumerate(CASES.items()):
        if names and case not in names:
            continue
        folder = out / spec["model"]
        model = load(folder, window=spec.get("window"))
        x = inputs(model, **{"seed": 100 + n, **spec})
        y = answer(model, x)
        golden = {k: v.detach().float() for k, v in y.items()}
        if spec.get("grad"):
            y["loss"].backward()
            golden |= {f"grad/{k}": p.grad for k, p in model.named_parameters()}
        with torch.no_grad():
            real = slice(spec.get("padding", 0), None)
            report = {"f64": apart(golden, answer(load(folder, torch.float64, window=spec.get("window")), x), real)}
            if model.config.text_config.model_type == "gemma":
                report["sdpa"] = apart(golden, answer(load(folder, attention="sdpa"), x), real)
        if spec.get("long"):
            for k in ("labels", "attention_mask", "image_features", "loss"):
                x.pop(k, None), golden.pop(k, None)
        save_file({k: v.contiguous() for k, v in (x | golden).items()}, out / f"hf_{case}.safetensors")
        print(case, "T", x["input_ids"].shape[1], "logits std %.2f" % golden["logits"].std(), "loss", golden.get("loss"),
              "features rms %.2f" % y["image_features"].detach().square().mean().sqrt(), json.dumps(report))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

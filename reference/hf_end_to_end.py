"""Makes goldens from image file and prompt to answer with transformers, on complete tiny folders.

    python reference/hf_end_to_end.py STAND_IN goldens/image/files goldens/e2e

STAND_IN is a folder made by `paligemma random tiny STAND_IN`, of which only tokenizer.json and tokenizer_config.json are
taken. Versions: transformers 5.23.0, torch 2.15.0, tokenizers 0.23.3, Pillow 13.0.0, safetensors 0.8.0; without
torchvision, so that AutoProcessor takes the PIL backend, which it is asked for in any case. Needs tiny_models.py beside it.

    tokenizer.json, tokenizer_config.json   one pair for both models, which a test copies into their folders
    pg1/    Gemma 1, one KV head, f32; four rows of the table from <image> on; preprocessor_config.json
    pg2/    Gemma 2, two KV heads, soft caps, bf16 (computed in f32); <image> just beyond the table, so that an npz
            drops no row; processor_config.json, in which the image processor is an object
    pg1.json, pg2.json
        cases[]     images (names in goldens/image/files), prompt, and
            ids         input_ids after the placeholders: BOS prefix "\\n"
            pixels      CRC-32 of the bytes of pixel_values, f32 [images,3,S,S]
            greedy      tokens (the EOS included when it came), text (skip_special_tokens), score: the sum of the log
                        probabilities; at most 12 new tokens
            beams       the same for num_beams=3, length_penalty=0, early_stopping=False
            cut         greedy and beams with the table cut before <image>, as an npz has it: other scores. pg1 only

Pictures are read by transformers.image_utils.load_image, which turns them upright and drops alpha. <image> and the rows
after it are never chosen. Weights as in tiny_models.py, drawn by name, so a second run on another machine may differ in
the last bits. A case is kept only if f32 and f64 give the same tokens everywhere.
"""

import json
import shutil
import sys
import zlib
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoProcessor, PaliGemmaConfig, PaliGemmaForConditionalGeneration
from transformers.image_utils import load_image

from tiny_models import config_json, draw, file_name, lift_eos

MODELS = {
    "pg1": dict(
        dtype="float32", names="2024", vocab=1988, image_token=1984, caps=None, processor="preprocessor_config.json",
        vision=dict(hidden_size=18, intermediate_size=23, num_hidden_layers=2, num_attention_heads=3, image_size=28, patch_size=7),
        text=dict(model_type="gemma", hidden_size=22, intermediate_size=31, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=1, head_dim=10),
        eos_lift=5.0, pad_rows=2.0, louder=0.0),
    "pg2": dict(
        dtype="bfloat16", names="2025", vocab=1984, image_token=1984, caps=(5.0, 8.0), processor="processor_config.json",
        vision=dict(hidden_size=20, intermediate_size=27, num_hidden_layers=2, num_attention_heads=2, image_size=35, patch_size=7),
        text=dict(model_type="gemma2", hidden_size=32, intermediate_size=29, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=12, query_pre_attn_scalar=8),
        eos_lift=3.3, pad_rows=1.0, louder=2.0),
}
LOC0 = 832  # <loc0000> in the stand-in tokenizer

PICTURES = [
    "animated-rgba.webp", "blocks-lossy.webp", "cmyk.jpg", "exif-2.jpg", "exif-3.png", "exif-5.jpg", "exif-6.jpg",
    "exif-6.webp", "exif-8.jpg", "grey.jpg", "noise-1x1-444-p.jpg", "noise-40x25-422.jpg", "noise-lossless.webp",
    "noise-lossy.webp", "palette-4-transparent.png", "palette-8.png", "png-0-16.png", "png-2-16.png", "png-4-8.png",
    "png-6-8.png", "quality-100.jpg", "rgba-lossy.webp", "rgba.webp", "sample-4x1.jpg", "waves-16x33-420.jpg",
    "waves-lossless.webp", "xmp-6.jpg", "ycck.jpg",
]
PAIRS = [
    ("exif-6.jpg", "png-6-8.png"), ("png-6-8.png", "exif-6.jpg"), ("noise-lossy.webp", "noise-lossy.webp"),
    ("grey.jpg", "waves-16x33-420.jpg"), ("exif-3.png", "exif-8.jpg"), ("rgba.webp", "cmyk.jpg"),
]
PROMPTS = [
    "caption en", "answer en what color is the cow?", "ocr", "detect dog ; cat", "segment left woman", "describe the image",
    "answer de Wo ist die Kuh?", "caption es", "", " two  spaces ", "détecter où\tça : 猫 🐄", "is <loc0123><seg007> a car?\nyes",
]


def write_folder(out, name, m, stand_in):
    folder = out / name
    folder.mkdir(parents=True, exist_ok=True)
    write = lambda file, value: (folder / file).write_text(json.dumps(value, indent=1) + "\n")
    config = config_json(m)
    write("config.json", config)
    write("generation_config.json", dict(_from_model_config=True, bos_token_id=2, eos_token_id=1, pad_token_id=0))
    side = m["vision"]["image_size"]
    processor = dict(
        do_convert_rgb=None, do_normalize=True, do_rescale=True, do_resize=True, image_mean=[0.5] * 3,
        image_processor_type="SiglipImageProcessor", image_seq_length=(side // m["vision"]["patch_size"]) ** 2,
        image_std=[0.5] * 3, resample=3, rescale_factor=1 / 255, size=dict(height=side, width=side))
    if m["processor"] == "processor_config.json":
        processor = dict(image_processor=processor)
    write(m["processor"], processor | dict(processor_class="PaliGemmaProcessor"))

    model = PaliGemmaForConditionalGeneration(PaliGemmaConfig(**config)).float().eval()
    for key, p in model.named_parameters():
        p.copy_(torch.from_numpy(draw(key, tuple(p.shape), m)).float())
    # Layers that are louder than the token's own embedding, or an answer would repeat one token.
    for key, p in model.named_parameters():
        if "language_model" in key and "post_" in key and "feedforward" in key:
            p += m["louder"]
    # Most of the table is <loc> and <seg>: made weaker, or an answer would hold little else.
    model.model.language_model.embed_tokens.weight[LOC0 : m["image_token"]] *= 0.7
    lift_eos(model, m)
    dtype = getattr(torch, m["dtype"])
    tensors = {file_name(k, m["names"]): v.to(dtype).clone().contiguous() for k, v in model.state_dict().items() if k != "lm_head.weight"}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # transformers wants the tokenizer in the folder; the goldens keep one copy.
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stand_in / file, folder / file)
    return folder


def load(folder, dtype, rows=None):
    """The model, with its table cut to `rows`; every tensor of the folder was used and none was made up."""
    model, info = PaliGemmaForConditionalGeneration.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", output_loading_info=True)
    assert not any(info[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys")), info
    if rows:
        table = model.model.language_model.embed_tokens
        table.weight = torch.nn.Parameter(table.weight[:rows].clone())
        model.lm_head.weight = table.weight
        model.config.text_config.vocab_size = model.model.vocab_size = rows
    return model.eval()


def answer(model, processor, x, **options):
    c = model.config
    x = {k: v for k, v in x.items() if k != "labels"} | dict(pixel_values=x["pixel_values"].to(model.dtype))
    ban = list(range(c.image_token_id, c.text_config.vocab_size)) or None
    out = model.generate(**x, do_sample=False, max_new_tokens=12, suppress_tokens=ban, return_dict_in_generate=True,
                         output_logits=True, output_scores=True, **options)
    tokens = out.sequences[0, x["input_ids"].shape[1]:].tolist()
    if 1 in tokens:
        tokens = tokens[: tokens.index(1) + 1]
    if options:
        score = out.sequences_scores.item()
    else:
        score = sum(torch.log_softmax(l[0], -1)[t].item() for l, t in zip(out.logits, tokens))
    return dict(tokens=tokens, text=processor.decode(tokens, skip_special_tokens=True), score=round(score, 5))


def both(model, processor, x):
    beams = dict(num_beams=3, length_penalty=0.0, early_stopping=False)
    return dict(greedy=answer(model, processor, x), beams=answer(model, processor, x, **beams))


def read(processor, files, images, prompt):
    pictures = [load_image(str(files / image)) for image in images]
    return processor(images=[pictures], text="<image>" * len(images) + prompt, return_tensors="pt")


def cases(n):
    """The n-th model's pairs of images and prompt."""
    for i, images in enumerate([(p,) for p in PICTURES] + PAIRS):
        yield images, PROMPTS[(i * 5 + n * 7) % len(PROMPTS)]


@torch.no_grad()
def main(stand_in, files, out):
    out.mkdir(parents=True, exist_ok=True)
    for n, (name, m) in enumerate(MODELS.items()):
        folder = write_folder(out, name, m, stand_in)
        processor = AutoProcessor.from_pretrained(folder, backend="pil")
        assert "Pil" in type(processor.image_processor).__name__, type(processor.image_processor)
        models = [load(folder, dtype) for dtype in (torch.float32, torch.float64)]
        rows = m["image_token"] if m["vocab"] > m["image_token"] else None
        cut = [load(folder, dtype, rows) for dtype in (torch.float32, torch.float64)] if rows else None
        kept, dropped = [], []
        for images, prompt in cases(n):
            x = read(processor, files, images, prompt)
            ids = x["input_ids"][0].tolist()
            places = len(images) * processor.image_seq_length
            assert set(ids[:places]) == {m["image_token"]} and not x["token_type_ids"].any() and x["attention_mask"].all()
            pixels = x["pixel_values"].numpy()
            assert pixels.dtype == "float32" and pixels.shape[0] == len(images)
            found = []
            for i in range(2):
                found.append(both(models[i], processor, x) | (dict(cut=both(cut[i], processor, x)) if rows else {}))
            tokens = lambda a: [v["tokens"] if "tokens" in v else tokens(v) for v in a.values()]
            case = dict(images=images, prompt=prompt, ids=ids[places:], pixels=f"{zlib.crc32(pixels.tobytes()):08x}")
            if tokens(found[0]) == tokens(found[1]):
                kept.append(case | found[0])
            else:
                dropped.append(case["images"])
        lines = ",\n".join(json.dumps(c, ensure_ascii=False, separators=(",", ":")) for c in kept)
        (out / f"{name}.json").write_text(f'{{"model":"{name}","cases":[\n{lines}\n]}}\n')
        for file in ("tokenizer.json", "tokenizer_config.json"):
            (folder / file).replace(out / file)
        ended = sum(c["greedy"]["tokens"][-1] == 1 for c in kept), sum(c["beams"]["tokens"][-1] == 1 for c in kept)
        kinds = len({c["greedy"]["text"] for c in kept}), len({c["beams"]["text"] for c in kept})
        beams = sum(c["beams"]["tokens"] != c["greedy"]["tokens"] for c in kept)
        print(f"{name}: {len(kept)} cases, dropped {dropped}; ended by EOS {ended}, different texts {kinds}, beams unlike greedy {beams}")
        for c in kept:
            print("   ", *c["images"], repr(c["prompt"]), "->", repr(c["greedy"]["text"]), "|", repr(c["beams"]["text"]))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

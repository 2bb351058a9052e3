"""Fifty steps of training the folders of goldens/e2e with transformers, torch and peft → goldens/train.

    python reference/hf_training.py goldens/e2e goldens/image/files goldens/train

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2. Everything is f32. Each step sees all six examples, one at a time,
so that there is no padding; the loss is the mean of the examples' means as big_vision has it, or of all tokens as
transformers has it. `losses.json` has the losses and the norms of the gradients of each run; `adapter_start/` and
`adapter_end/` are peft's folders before and after the run `pg2_lora`, for which `data.jsonl` is the data too.
"""

import json
import math
import shutil
import sys
import tempfile
from pathlib import Path

import peft
import torch
from transformers import AutoProcessor, PaliGemmaForConditionalGeneration
from transformers.image_utils import load_image

STEPS, WARMUP = 50, 5
DATA = [
    ("exif-6.jpg", "caption en", "a cow on the left"),
    ("png-6-8.png", "answer en what color is it?", "blue"),
    ("grey.jpg", "detect cat", "<loc0100><loc0200><loc0300><loc1023> cat"),
    ("rgba.webp", "caption de", "ein Bild"),
    ("noise-lossy.webp", "ocr", "x"),
    ("exif-3.png", "segment cat", "<loc0001><loc0002><loc0003><loc0004><seg001><seg127> cat"),
]
TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"


def load(folder, stand_in, tmp):
    for file in folder.iterdir():
        shutil.copyfile(file, tmp / file.name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(stand_in / file, tmp / file)
    model = PaliGemmaForConditionalGeneration.from_pretrained(tmp, dtype=torch.float32, attn_implementation="eager")
    return model.train(), AutoProcessor.from_pretrained(tmp, backend="pil")


def examples(processor, files):
    all = []
    for image, prefix, suffix in DATA:
        x = processor(images=load_image(str(files / image)), text="<image>" + prefix, suffix=suffix, return_tensors="pt")
        assert x["attention_mask"].all() and (x["labels"] != -100).sum() == x["token_type_ids"].sum()
        all.append(x)
    return all


def loss_of(model, x, label_smoothing=0.0):
    """The mean over the example's tokens; the shift is ours, so that nothing is averaged behind our back."""
    y = {k: v for k, v in x.items() if k != "labels"}
    logits = model(**y, labels=x["labels"]).logits[:, :-1]
    labels = x["labels"][:, 1:]
    keep = labels != -100
    logp = torch.log_softmax(logits[keep], -1)
    hit = -logp.gather(1, labels[keep][:, None])[:, 0]
    if label_smoothing:
        v = logp.shape[1]
        rest = -(logp.sum(1) + hit) / (v - 1)
        hit = (1 - label_smoothing) * hit + label_smoothing * rest
    return hit.mean(), int(keep.sum())


def schedule(step):
    return min(1, step / WARMUP) * 0.5 * (1 + math.cos(math.pi * min(max((step - WARMUP) / (STEPS - WARMUP), 0), 1)))


def train(model, data, optimiser, lr, clip=1.0, mean="example", **kw):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimiser = optimiser(parameters)
    losses, norms = [], []
    for step in range(STEPS):
        optimiser.zero_grad()
        total, parts = 0.0, []
        tokens = sum(int((x["labels"][:, 1:] != -100).sum()) for x in data)
        for x in data:
            loss, n = loss_of(model, x, **kw)
            loss = loss / len(data) if mean == "example" else loss * n / tokens
            loss.backward()
            total += loss.item()
        norm = math.sqrt(sum(float((p.grad.double() ** 2).sum()) for p in parameters if p.grad is not None))
        if clip and norm > clip:
            for p in parameters:
                if p.grad is not None:
                    p.grad *= clip / norm
        optimiser.param_groups[0]["lr"] = lr * schedule(step)
        optimiser.step()
        losses.append(total)
        norms.append(norm)
    return dict(loss=losses, norm=norms)


def main(e2e, files, out):
    out.mkdir(parents=True, exist_ok=True)
    adamw = lambda lr: (lambda p: torch.optim.AdamW(p, lr=lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0))
    runs = {}
    for name in ("pg1", "pg2"):
        with tempfile.TemporaryDirectory() as tmp:
            fresh = lambda: load(e2e / name, e2e, Path(tmp))
            model, processor = fresh()
            data = examples(processor, files)
            # The loss that transformers itself gives for one example is that of its tokens.
            ours, theirs = loss_of(model, data[0])[0], model(**data[0]).loss
            assert abs(ours - theirs) < 1e-5, (ours, theirs)
            runs[f"{name}_full"] = train(model, data, adamw(3e-4), 3e-4)
            # Equal programs drift apart by rounding alone, and long steps make little of much: these runs stay far below 1e-4.
            wide = [{k: v.double() if v.is_floating_point() else v for k, v in x.items()} for x in data]
            def check_drift(run, *args, **kw):
                exact = train(fresh()[0].double(), wide, *args, **kw)["loss"]
                drift = max(abs(a - b) for a, b in zip(runs[run]["loss"], exact))
                print(run, "f32 against f64:", drift)
                assert drift < 2e-5
            check_drift(f"{name}_full", adamw(3e-4), 3e-4)
            model, _ = fresh()
            for key, p in model.named_parameters():
                p.requires_grad = not ("vision_tower" in key or "multi_modal_projector" in key)
            runs[f"{name}_frozen"] = train(model, data, adamw(1e-3), 1e-3, mean="token", label_smoothing=0.1)
            model, _ = fresh()
            sgd = lambda p: torch.optim.SGD(p, lr=5e-4, momentum=0.9)
            runs[f"{name}_sgd"] = train(model, data, sgd, 5e-4, clip=0)
            check_drift(f"{name}_sgd", sgd, 5e-4, clip=0)
            torch.manual_seed(0)
            model, _ = fresh()
            config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules=TARGETS)
            model = peft.get_peft_model(model, config)
            model.peft_config["default"].base_model_name_or_path = name
            if name == "pg2":
                model.save_pretrained(out / "adapter_start")
            runs[f"{name}_lora"] = train(model, data, adamw(5e-3), 5e-3)
            if name == "pg2":
                model.peft_config["default"].base_model_name_or_path = name
                model.save_pretrained(out / "adapter_end")
            else:
                # The other model's adapter to begin with is made again by its seed: it stands beside the runs.
                torch.manual_seed(0)
                model = peft.get_peft_model(fresh()[0], config)
                model.peft_config["default"].base_model_name_or_path = name
                model.save_pretrained(out / "adapter_pg1")
            for key in ("loss", "norm"):
                print(name, key, {k: (r[key][0], r[key][-1]) for k, r in runs.items() if k.startswith(name)})
    for folder in ("adapter_start", "adapter_end", "adapter_pg1"):
        (out / folder / "README.md").unlink(missing_ok=True)
    (out / "losses.json").write_text(json.dumps(runs) + "\n")
    with open(out / "data.jsonl", "w") as f:
        for image, prefix, suffix in DATA:
            f.write(json.dumps(dict(image=image, prefix=prefix, suffix=suffix), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

"""Times transformers on a checkpoint folder of any size, to stand beside `paligemma run --json`.

    python reference/full_size.py FOLDER [--dtype bf16|f32] [--threads 2] [--tokens 20] [--image FILE] [--ids 2,5,108 | --prompt WORDS]

Versions: transformers 5.23.0, torch 2.15.0, pillow 13.0.0, tokenizers 0.23.3.

FOLDER needs config.json and safetensors, as `paligemma random` writes; --prompt needs its tokenizer.json too and is encoded
as BOS, the words, and "\\n" apart. Without an image a fixed gradient is used. Greedy; <image> and the rows after it are banned,
an EOS ends the answer. Prints one JSON object, times in seconds, each measured once as a user meets it (cold):
    load_s, image_encode_s (encoder and projector), prefill_s (decoder over image and prompt), ttft_s (their sum with the
    choice of the token, without loading), decode_s (all later tokens), step_s (each), tokens_per_s (later tokens over
    decode_s, null without any), image_tokens, prompt_tokens, peak_rss_bytes (of the process, torch's own included;
    mapped weights count), tokens (EOS left out), finish_reason.
"""

import argparse
import json
import resource
import time
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import PaliGemmaForConditionalGeneration


def pixels_of(file, side):
    """f32 [1,3,side,side] in [-1,1]: Pillow's bicubic to a square, as the processor does."""
    if file:
        levels = np.asarray(Image.open(file).convert("RGB").resize((side, side), Image.Resampling.BICUBIC), np.float32)
    else:
        y, x = np.mgrid[:side, :side] / (side - 1)
        levels = np.round(np.stack([x, y, (x + y) / 2], -1) * 255).astype(np.float32)
    return torch.from_numpy(levels / 127.5 - 1).permute(2, 0, 1)[None].contiguous()


def ids_of(args, config):
    if args.ids:
        return [int(i) for i in args.ids.split(",")]
    from tokenizers import Tokenizer

    t = Tokenizer.from_file(str(args.folder / "tokenizer.json"))
    encode = lambda s: t.encode(s, add_special_tokens=False).ids
    return [config.text_config.bos_token_id, *encode(args.prompt), *encode("\n")]


@torch.inference_mode()
def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", choices=("bf16", "f32"), default="bf16")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--tokens", type=int, default=20)
    parser.add_argument("--image")
    parser.add_argument("--ids")
    parser.add_argument("--prompt", default="caption en")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[args.dtype]

    clock = time.perf_counter
    start = clock()
    model = PaliGemmaForConditionalGeneration.from_pretrained(args.folder, dtype=dtype).eval()
    load_s = clock() - start

    config = model.config
    prompt = ids_of(args, config)
    ids = torch.tensor([[config.image_token_id] * config.text_config.num_image_tokens + prompt])
    pixels = pixels_of(args.image, config.vision_config.image_size).to(dtype)
    eos = config.text_config.eos_token_id

    start = clock()
    image = model.get_image_features(pixels)
    encoded = clock()
    out = model(input_ids=ids, token_type_ids=torch.zeros_like(ids), mm_encoder_outputs={"image": image}, use_cache=True, logits_to_keep=1)
    choose = lambda out: out.logits[0, -1, : config.image_token_id].float().argmax().item()
    tokens, marks = [choose(out)], [clock()]
    while tokens[-1] != eos and len(tokens) < args.tokens:
        out = model(input_ids=torch.tensor([tokens[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        tokens.append(choose(out))
        marks.append(clock())

    steps = np.diff(marks).tolist()
    print(json.dumps(dict(
        transformers=transformers.__version__, torch=torch.__version__, dtype=args.dtype, threads=args.threads,
        attention=config.text_config._attn_implementation,
        load_s=load_s, image_encode_s=encoded - start, prefill_s=marks[0] - encoded, ttft_s=marks[0] - start,
        decode_s=sum(steps), step_s=steps, tokens_per_s=len(steps) / sum(steps) if steps else None,
        image_tokens=config.text_config.num_image_tokens, prompt_tokens=len(prompt),
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        tokens=[t for t in tokens if t != eos], finish_reason="eos" if tokens[-1] == eos else "length")))


if __name__ == "__main__":
    main()

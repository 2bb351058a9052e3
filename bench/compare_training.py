#!/usr/bin/env python3
"""Compares a step of training with transformers, torch and peft on this machine's CPU: the same model, picture and tokens.

    cargo build --release
    ./target/release/paligemma random 3b-224 ./model
    python3 bench/compare_training.py ./model --what lora        # or full
    pip install torch transformers peft                          # what it needs, in the Python that runs it

A step is forward, backward and update of one example. lora: adapters of rank 8 beside every linear layer of the decoder, AdamW.
full: the decoder with its table learns by SGD, image encoder and projector are frozen. Weights are bf16; peft's adapters too
(its fastest), ours f32. The two take turns, --rounds times; a ratio is the median of the turns' ratios.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def theirs(args):
    """A step in this process → seconds of each."""
    import torch
    from transformers import PaliGemmaForConditionalGeneration

    torch.set_num_threads(args.threads)
    model = PaliGemmaForConditionalGeneration.from_pretrained(args.model, dtype=torch.bfloat16)
    if args.what == "lora":
        from peft import LoraConfig, get_peft_model

        targets = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
        config = LoraConfig(r=8, lora_alpha=16, target_modules=targets)
        model = get_peft_model(model, config, autocast_adapter_dtype=False)
        optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    else:
        for name, p in model.named_parameters():
            p.requires_grad_("language_model" in name)
        optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-6)
    image_tokens = model.config.text_config.num_image_tokens
    image = model.config.image_token_index
    total = args.prompt_tokens + args.suffix_tokens
    ids = [image] * image_tokens + [i * 7919 % image for i in range(total)]
    suffix = len(ids) - args.suffix_tokens
    batch = {
        "input_ids": torch.tensor([ids]),
        "pixel_values": torch.zeros(1, 3, args.side, args.side, dtype=torch.bfloat16),
        "token_type_ids": torch.tensor([[0] * suffix + [1] * args.suffix_tokens]),
        "labels": torch.tensor([[-100] * suffix + ids[suffix:]]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
    }
    model.train()
    seconds = []
    for _ in range(args.steps + 1):
        start = time.perf_counter()
        loss = model(**batch).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        seconds.append(time.perf_counter() - start)
    # The first does not count.
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"train_step_s": statistics.median(seconds[1:]), "peak_rss_bytes": peak}))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a folder of `paligemma random 3b-224 DIR`")
    parser.add_argument("--what", choices=["lora", "full"], default="lora")
    parser.add_argument("--paligemma", type=Path, default=ROOT / "target/release/paligemma")
    parser.add_argument("--side", type=int, default=224)
    parser.add_argument("--prompt-tokens", type=int, default=16)
    parser.add_argument("--suffix-tokens", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="that count, in each turn")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--theirs", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.theirs:
        return theirs(args)
    ours = [args.paligemma, "bench", args.model, "--train", args.what, "--prompt-tokens", args.prompt_tokens,
            "--new-tokens", args.suffix_tokens, "--repeat", args.steps, "--threads", args.threads, "--json", "-q"]
    peer = [sys.executable, __file__, args.model, "--theirs", "--what", args.what, "--side", args.side, "--prompt-tokens",
            args.prompt_tokens, "--suffix-tokens", args.suffix_tokens, "--steps", args.steps, "--threads", args.threads]
    rows = []
    for turn in range(args.rounds):
        ran = [json.loads(subprocess.run([str(x) for x in command], check=True, capture_output=True, text=True).stdout)
               for command in (ours, peer)]
        seconds = ran[0]["train_step_s"]["median"], ran[1]["train_step_s"]
        rows.append((*seconds, ran[0]["peak_rss_bytes"], ran[1]["peak_rss_bytes"], ran[0]["train_of_peak"]))
        print(f"turn {turn + 1}: {seconds[0]:.2f} s : {seconds[1]:.2f} s", file=sys.stderr)
    median = statistics.median
    print("| | paligemma | theirs | ratio |\n|---|---:|---:|---:|")
    print(f"| {args.what}: a step | {median(r[0] for r in rows):.2f} s | {median(r[1] for r in rows):.2f} s "
          f"| **{median(r[0] / r[1] for r in rows):.2f}** |")
    print(f"| {args.what}: peak memory | {max(r[2] for r in rows) / 2**30:.1f} GiB | {max(r[3] for r in rows) / 2**30:.1f} GiB "
          f"| {median(r[2] / r[3] for r in rows):.2f} |")
    print(f"| {args.what}: of the machine's peak | {100 * median(r[4] for r in rows):.0f} % | | |")


main()

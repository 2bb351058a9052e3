#!/usr/bin/env python3
"""Compares paligemma with its peers on this machine's CPU: the same sizes and token counts, taking turns in one run.

    cargo build --release
    python3 bench/compare.py                                  # PaliGemma 3B in bf16 beside transformers and torch
    python3 bench/compare.py --compile                        # torch.compile and freezing too (a minute of warm-up a case)
    python3 bench/compare.py --cases 224x1 --dtype f32
    python3 bench/compare.py --llama q8_0 q4_0 --our-dtype bf16    # the language model alone, beside llama.cpp

A case is SIDExBATCH. Weights are random and nothing is downloaded but packages, which go into a virtual environment (--venv,
made where it is missing): torch, transformers; with --llama llama-cpp-python (compiled here for this processor, needs a C++
compiler) and gguf. llama.cpp's model files (5.0 GB, and from it 2.6 and 1.6) are kept there too.

Leave the machine to it: other work slows torch and llama.cpp more than us, as their threads wait for each other.

Each program is a process that stays, and waits while the other runs: ours, theirs, ours, theirs, ... A ratio is the median of
the ratios of such pairs. Where memory does not hold two models each is loaded for its turn and ended after it. The first turn
of every process does not count.

    image encode   pixels to projected tokens
    first token    pixels to the first token: image encode, language model over image and prompt tokens, one row of logits
    a token        a step of decoding, which gives every answer of the batch a token, greedily

Of llama.cpp's Gemma the first token is that of as many text tokens, and is compared with our language model's alone.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TORCH, TRANSFORMERS, LLAMA, GGUF = "2.15.0", "5.23.0", "0.3.36", "0.19.0"
PARAMETERS = 2_923_466_480  # of the 3B, with 64 rows of the table from <image> on
CASES = ["224x1", "224x4", "224x8", "448x1", "896x1"]
BYTES = {"f32": 4, "bf16": 2}
# Gemma 2B as PaliGemma 3B has it.
LAYERS, WIDTH, MLP, HEADS, KEY_HEADS, HEAD, ROWS, IMAGE_TOKEN = 18, 2048, 16_384, 8, 1, 256, 257_216, 257_152


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("paligemma", nargs="?", type=Path, default=ROOT / "target/release/paligemma",
                        help="our program (default: target/release/paligemma)")
    parser.add_argument("--cases", nargs="+", type=case, metavar="SIDExBATCH",
                        help="sides (224, 448, 896) and batches (default: " + " ".join(CASES) + ")")
    parser.add_argument("--dtype", choices=BYTES, default="bf16", help="torch's weights, and ours (default: bf16)")
    parser.add_argument("--our-dtype", help="ours where they are to differ")
    parser.add_argument("--compile", action="store_true", help="torch.compile with freezing, beside eager")
    parser.add_argument("--llama", nargs="*", choices=["q8_0", "q4_0", "f16"], metavar="TYPE",
                        help="llama.cpp in place of torch: q8_0, q4_0 (both if none is named), f16; 224x1 alone")
    parser.add_argument("--rounds", type=number(1), default=5, metavar="N", help="pairs that count (default: 5)")
    parser.add_argument("--prompt-tokens", type=number(1), default=16, metavar="N", help="(default: 16)")
    parser.add_argument("--new-tokens", type=number(2), default=32, metavar="N", help="(default: 32)")
    parser.add_argument("--threads", type=number(1), default=physical_cores(), metavar="N",
                        help="(default: the physical cores, here %(default)s)")
    parser.add_argument("--venv", type=Path, default=ROOT / "bench/.venv", metavar="DIR",
                        help="the virtual environment (default: bench/.venv)")
    parser.add_argument("--json", action="store_true", help="print JSON in place of the table")
    args = parser.parse_args()
    uses_llama = args.llama is not None
    if uses_llama and (args.cases or args.compile):
        parser.error("--llama goes with neither --cases nor --compile")

    args.paligemma = args.paligemma.resolve()
    check_program(args.paligemma)
    python = virtual_environment(args.venv, uses_llama)
    peers = [f"llama.cpp {kind}" for kind in args.llama or ["q8_0", "q4_0"]] if uses_llama else ["torch eager"]
    if args.compile and not uses_llama:
        peers.append("torch compiled")
    cases = [case("224x1")] if uses_llama else args.cases or list(map(case, CASES))
    results = [compare(args, python, peer, side, batch) for side, batch in cases for peer in peers]
    machine = {"processor": processor(), "threads": args.threads, "memory_bytes": meminfo("MemTotal")}
    versions = ({"llama-cpp-python": LLAMA} if uses_llama else {"torch": TORCH, "transformers": TRANSFORMERS})
    settings = {"prompt_tokens": args.prompt_tokens, "new_tokens": args.new_tokens, "rounds": args.rounds}
    if args.json:
        print(json.dumps({"machine": machine, "versions": versions, "settings": settings, "results": results}))
    else:
        print(table(machine, versions, settings, results))


def case(text):
    side, x, batch = text.partition("x")
    if not (x and side in ("224", "448", "896") and batch.isdigit() and 1 <= int(batch) <= 64):
        raise argparse.ArgumentTypeError(f"{text!r} is no case: a side of 224, 448 or 896, then x, then a batch of 1 to 64")
    return int(side), int(batch)


def number(least):
    def parse(text):
        if not (text.isdigit() and int(text) >= least):
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
        return int(text)
    return parse


def fail(*lines):
    sys.exit("error: " + "\n".join(lines))


def say(text):
    print(text, file=sys.stderr, flush=True)


def check_program(program):
    if not program.is_file():
        fail(f"there is no program at {program}", "hint: build it with `cargo build --release`, or name it as the first argument")
    try:
        ran = subprocess.run([program, "bench", "--help"], capture_output=True, text=True)
    except OSError as e:
        fail(f"{program} does not run: {e.strerror}")
    if ran.returncode or "--turns" not in ran.stdout:
        fail(f"{program} has no `bench --turns`", "expected this repository's program of the same version")


def virtual_environment(folder, uses_llama):
    """The Python of the virtual environment at `folder`, which has what is needed when this returns."""
    python = folder / "bin/python"
    if not python.exists():
        if folder.exists() and any(folder.iterdir()):
            fail(f"{folder} is neither empty nor a virtual environment")
        say(f"making the virtual environment {folder}")
        if subprocess.run([sys.executable, "-m", "venv", folder], stdout=sys.stderr).returncode:
            fail(f"no virtual environment could be made at {folder}", "hint: on Debian, apt install python3-venv")
    def has(*modules):
        return subprocess.run([python, "-c", f"import {', '.join(modules)}"], capture_output=True).returncode == 0
    def install(*packages, **env):
        say(f"installing {' '.join(packages)}")
        command = [python, "-m", "pip", "install", "-q", *packages]
        return subprocess.run(command, stdout=sys.stderr, env=os.environ | env).returncode == 0
    if uses_llama:
        ok = has("llama_cpp", "gguf") or install(f"llama-cpp-python=={LLAMA}", f"gguf=={GGUF}", CMAKE_ARGS="-DGGML_NATIVE=ON")
    else:
        # torch's own index has builds for CPUs; PyPI's build carries CUDA's libraries and computes the same here.
        cpu = ["--retries", "1", "--index-url", "https://download.pytorch.org/whl/cpu"]
        ok = has("torch") or install(f"torch=={TORCH}", *cpu) or install(f"torch=={TORCH}")
        ok = ok and (has("transformers") or install(f"transformers=={TRANSFORMERS}", "numpy"))
    if not ok:
        fail(f"the packages could not be installed into {folder}", "what pip says stands above")
    return python


# What the machine is.

def physical_cores():
    try:
        siblings = {Path(f"/sys/devices/system/cpu/cpu{i}/topology/thread_siblings").read_text()
                    for i in os.sched_getaffinity(0)}
        return len(siblings)
    except (OSError, AttributeError):
        return os.cpu_count() or 1


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = dict(map(str.strip, line.split(":", 1)) for line in lines if ":" in line)
    family = f" (family {facts['cpu family']}, model {facts['model']})" if "cpu family" in facts else ""
    return facts.get("model name", platform.machine()) + family


def meminfo(name):
    """A field of /proc/meminfo in bytes; None where there is none."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":")), None)


# Turns.

class Program:
    """A process that runs once for each line it is sent, and answers with one of JSON."""

    def __init__(self, name, command, needs):
        self.name, self.command, self.needs, self.process = name, command, needs, None

    def turn(self):
        if self.process is None:
            self.log = tempfile.TemporaryFile()
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
            self.process = subprocess.Popen(self.command, text=True, **pipes)
            self.ask()
        return self.ask()

    def ask(self):
        try:
            self.process.stdin.write("\n")
            self.process.stdin.flush()
            return json.loads(self.process.stdout.readline())
        except (OSError, ValueError):
            code = self.process.wait()
            self.log.seek(0)
            last = self.log.read().decode(errors="replace").splitlines()[-20:]
            fail(f"{self.name} ended with {code}; its last words:", *last)

    def end(self):
        if self.process:
            self.process.stdin.close()
            self.process.wait()
            self.process = None


def compare(args, python, peer, side, batch):
    ours_dtype = args.our_dtype or args.dtype
    counts = ["--prompt-tokens", args.prompt_tokens, "--new-tokens", args.new_tokens, "--threads", args.threads]
    ours = [args.paligemma, "bench", "--random", f"3b-{side}", "--dtype", ours_dtype, "--batch", batch, *counts, "--turns", "--json"]
    job = {"peer": peer, "side": side, "batch": batch, "dtype": args.dtype, "prompt_tokens": args.prompt_tokens,
           "new_tokens": args.new_tokens, "threads": args.threads, "folder": str(args.venv / "gguf")}
    # What was seen to be needed, in sizes of the weights: compiling keeps packed copies of them.
    weights = PARAMETERS * BYTES[args.dtype]
    theirs_needs = {"torch eager": 1.3 * weights, "torch compiled": 3.2 * weights}.get(peer, 6e9)
    programs = [
        Program("paligemma", list(map(str, ours)), 1.2 * PARAMETERS * BYTES.get(ours_dtype, 2)),
        Program(peer, [python, __file__, "--peer", json.dumps(job)], theirs_needs),
    ]
    say(f"{side} px, batch {batch}, {peer}: loading")
    if peer.startswith("llama"):
        if subprocess.run([python, __file__, "--make-gguf", json.dumps(job)], stdout=sys.stderr).returncode:
            fail(f"the model for {peer} could not be made", "what went wrong stands above")
    available = meminfo("MemAvailable")
    in_turn = available is not None and sum(p.needs for p in programs) > available
    if available is not None and max(p.needs for p in programs) > available:
        fail(f"{peer} needs about {max(p.needs for p in programs) / 1e9:.0f} GB of memory and {available / 1e9:.0f} GB are available")
    if in_turn:
        say("memory does not hold both: each is loaded for its turn")
    pairs, peaks = [], [0, 0]
    try:
        for i in range(args.rounds):
            pair = []
            for j, program in enumerate(programs):
                figures = program.turn()
                peaks[j] = max(peaks[j], figures["peak_rss_bytes"])
                pair.append({name: of["median"] if isinstance(of, dict) else of for name, of in figures.items()})
                if in_turn:
                    program.end()
            say(f"  round {i + 1} of {args.rounds}: " + shown(pair, peer))
            pairs.append(pair)
    finally:
        for program in programs:
            program.end()
    rows = {}
    for name in names(peer):
        values = list(zip(*([of[name] for of in pair] + [pair[0][name] / pair[1][name]] for pair in pairs)))
        rows[name] = dict(zip(("ours", "theirs", "ratio"), map(spread, values)))
    rows["peak_rss_bytes"] = {"ours": peaks[0], "theirs": peaks[1], "ratio": peaks[0] / peaks[1]}
    ours = {key: statistics.median(pair[0][key] for pair in pairs) for key in ("prefill_of_peak", "decode_of_bandwidth")}
    return {"side": side, "batch": batch, "peer": peer, "dtype": args.dtype, "our_dtype": ours_dtype,
            "isa": pairs[0][0]["isa"], "in_turn": in_turn, "rows": rows, "ours": ours}


def names(peer):
    return ["prefill_s", "decode_token_s"] if peer.startswith("llama") else ["image_encode_s", "ttft_s", "decode_token_s"]


def shown(pair, peer):
    return ", ".join(f"{name} {pair[0][name]:.3f} : {pair[1][name]:.3f}" for name in names(peer))


def spread(values):
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def table(machine, versions, settings, results):
    memory = f", {machine['memory_bytes'] / 2**30:.0f} GiB" if machine["memory_bytes"] else ""
    used = ", ".join(f"{name} {version}" for name, version in versions.items())
    lines = [
        f"{machine['processor']}, {machine['threads']} threads{memory}; {results[0]['isa']} kernels; {used}; "
        f"PaliGemma 3B, random weights, {settings['prompt_tokens']} prompt tokens, {settings['new_tokens']} new tokens, "
        f"medians of {settings['rounds']} pairs", "",
        "| | peer | paligemma | peer's | ratio |", "|---|---|---:|---:|---:|"]
    words = {"image_encode_s": "image encode", "ttft_s": "first token", "prefill_s": "first token of {} text tokens",
             "decode_token_s": "a token"}
    for result in results:
        tokens = (result["side"] // 14) ** 2 + settings["prompt_tokens"]
        is_llama = result["peer"].startswith("llama")
        where = "language model" if is_llama else f"{result['side']} px, batch {result['batch']}"
        peer = result["peer"] if is_llama else f"{result['peer']} {result['dtype']}"
        for name, row in result["rows"].items():
            if name == "peak_rss_bytes":
                cells = [f"{row[of] / 2**30:.1f} GiB" for of in ("ours", "theirs")] + [f"{row['ratio']:.2f}"]
                lines.append(f"| {where}: peak memory | {peer} | " + " | ".join(cells) + " |")
                continue
            ours, theirs, ratio = (row[of]["median"] for of in ("ours", "theirs", "ratio"))
            lines.append(f"| {where}: {words[name].format(tokens)} | {peer} | {ours:.3f} s | {theirs:.3f} s | **{ratio:.2f}** |")
    return "\n".join(lines)


# The peers, in the virtual environment's Python.

def answer_turns(run):
    """Runs once for each line on stdin and answers with JSON on stdout, which nothing else may write to."""
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for _ in sys.stdin:
        import resource
        figures = run() | {"peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
        print(json.dumps(figures), file=out, flush=True)


def torch_peer(job):
    import time
    import torch
    from transformers import DynamicCache, PaliGemmaConfig, PaliGemmaForConditionalGeneration, StaticCache
    from transformers.initialization import no_init_weights

    torch.set_num_threads(job["threads"])
    torch.set_grad_enabled(False)
    dtype = {"bf16": torch.bfloat16, "f32": torch.float32}[job["dtype"]]
    side, batch, new_tokens = job["side"], job["batch"], job["new_tokens"]
    image_tokens = (side // 14) ** 2
    config = PaliGemmaConfig(
        vision_config={"model_type": "siglip_vision_model", "image_size": side, "patch_size": 14, "hidden_size": 1152,
                       "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16,
                       "projection_dim": WIDTH, "num_image_tokens": image_tokens, "vision_use_head": False},
        text_config={"model_type": "gemma", "vocab_size": ROWS, "hidden_size": WIDTH, "intermediate_size": MLP,
                     "num_hidden_layers": LAYERS, "num_attention_heads": HEADS, "num_key_value_heads": KEY_HEADS,
                     "head_dim": HEAD, "hidden_activation": "gelu_pytorch_tanh", "num_image_tokens": image_tokens,
                     "tie_word_embeddings": True},
        image_token_index=IMAGE_TOKEN, projection_dim=WIDTH, hidden_size=WIDTH, vocab_size=ROWS)
    with no_init_weights():
        model = PaliGemmaForConditionalGeneration._from_config(config, dtype=dtype, attn_implementation="sdpa").eval()
    model.tie_weights()
    # Every number is written: pages that nobody wrote are no memory, and reading them costs nothing.
    block = torch.randn(1 << 20).mul_(0.02).to(dtype)
    for parameter in model.parameters():
        assert parameter.dtype == dtype, parameter.dtype
        flat = parameter.data.view(-1)
        for part in flat.split(len(block)):
            part.copy_(block[:len(part)])

    ids = torch.tensor([[IMAGE_TOKEN] * image_tokens + [(i * 7919) % IMAGE_TOKEN for i in range(job["prompt_tokens"])]] * batch)
    pixels = torch.rand(batch, 3, side, side).mul_(2).sub_(1).to(dtype)
    types = torch.zeros_like(ids)
    length = ids.shape[1] + new_tokens
    encode, forward = model.get_image_features, model.forward
    if job["peer"] == "torch compiled":
        import torch._inductor.config
        torch._inductor.config.freezing = True
        encode, forward = torch.compile(encode, dynamic=False), torch.compile(forward, dynamic=False)

    def choose(out):
        return out.logits[:, -1, :IMAGE_TOKEN].argmax(-1, keepdim=True)

    static = None
    if job["peer"] == "torch compiled":
        static = StaticCache(config=config.text_config, max_cache_len=length)
        # A cache that is made at its first use compiles everything twice, with two packed copies of the weights.
        static.early_initialization(batch, KEY_HEADS, HEAD, dtype, torch.device("cpu"))

    @torch.inference_mode()
    def run():
        if static is not None:
            static.reset()
        cache = DynamicCache(config=config.text_config) if static is None else static
        start = time.perf_counter()
        image = encode(pixels)
        encoded = time.perf_counter()
        out = forward(input_ids=ids, token_type_ids=types, mm_encoder_outputs={"image": image}, past_key_values=cache,
                      use_cache=True, logits_to_keep=1)
        token = choose(out)
        first = time.perf_counter()
        for _ in range(new_tokens - 1):
            token = choose(forward(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1))
        end = time.perf_counter()
        return {"image_encode_s": encoded - start, "ttft_s": first - start, "decode_token_s": (end - first) / (new_tokens - 1)}

    answer_turns(run)


def gguf_file(job):
    return Path(job["folder"]) / f"gemma-2b-{job['peer'].split()[1]}.gguf"


def make_gguf(job):
    """Writes Gemma 2B with random weights in f16, and from it the type asked for, unless that is there already."""
    import logging
    import gguf
    import llama_cpp
    import numpy as np

    logging.getLogger("llama-cpp-python").setLevel(logging.ERROR)  # it tells every tensor
    target = gguf_file(job)
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    source = target.with_name("gemma-2b-f16.gguf")
    free = shutil.disk_usage(target.parent).free
    if free < 9e9:
        fail(f"{target.parent} has {free / 1e9:.0f} GB free, and 9 GB are needed")
    unfinished = target.with_suffix(".unfinished")
    if not source.exists():
        say(f"writing {source}")
        writer = gguf.GGUFWriter(unfinished, "gemma")
        writer.add_context_length(8192)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(LAYERS)
        writer.add_feed_forward_length(MLP)
        writer.add_head_count(HEADS)
        writer.add_head_count_kv(KEY_HEADS)
        writer.add_key_length(HEAD)
        writer.add_value_length(HEAD)
        writer.add_layer_norm_rms_eps(1e-6)
        writer.add_vocab_size(ROWS)
        writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
        writer.add_tokenizer_model("no_vocab")
        shapes = {"token_embd.weight": (ROWS, WIDTH), "output_norm.weight": (WIDTH,)}
        for i in range(LAYERS):
            shapes |= {f"blk.{i}.{name}.weight": shape for name, shape in {
                "attn_norm": (WIDTH,), "attn_q": (HEADS * HEAD, WIDTH), "attn_k": (KEY_HEADS * HEAD, WIDTH),
                "attn_v": (KEY_HEADS * HEAD, WIDTH), "attn_output": (WIDTH, HEADS * HEAD), "ffn_norm": (WIDTH,),
                "ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH), "ffn_down": (WIDTH, MLP)}.items()}
        type_of = lambda shape: np.float16 if len(shape) == 2 else np.float32
        for name, shape in shapes.items():
            size = int(np.prod(shape)) * np.dtype(type_of(shape)).itemsize
            writer.add_tensor_info(name, shape, np.dtype(type_of(shape)), size)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        block = np.random.default_rng(0).standard_normal(1 << 20, np.float32) * 0.02
        for shape in shapes.values():
            writer.write_tensor_data(np.resize(block.astype(type_of(shape)), shape))
        writer.close()
        unfinished.rename(source)
    if target != source:
        say(f"quantising to {target}")
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = {"q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, "q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0}[target.stem.split("-")[-1]]
        params.nthread = job["threads"]
        import ctypes
        if llama_cpp.llama_model_quantize(str(source).encode(), str(unfinished).encode(), ctypes.byref(params)):
            fail("llama.cpp could not quantise the model")
        unfinished.rename(target)


def llama_peer(job):
    import ctypes
    import time
    import llama_cpp
    import numpy as np

    llama_cpp.llama_backend_init()
    model = llama_cpp.llama_model_load_from_file(str(gguf_file(job)).encode(), llama_cpp.llama_model_default_params())
    length = (job["side"] // 14) ** 2 + job["prompt_tokens"]
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = length + job["new_tokens"]
    params.n_threads = params.n_threads_batch = job["threads"]
    context = model and llama_cpp.llama_init_from_model(model, params)
    if not context:
        fail("llama.cpp could not load the model")

    def decode(ids):
        """Reads the ids and gives the likeliest next one."""
        ids = (llama_cpp.llama_token * len(ids))(*ids)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(ids, len(ids))):
            fail("llama.cpp could not decode")
        logits = llama_cpp.llama_get_logits_ith(context, -1)
        return int(np.ctypeslib.as_array(logits, shape=(ROWS,))[:IMAGE_TOKEN].argmax())

    def run():
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        start = time.perf_counter()
        token = decode([(i * 7919) % IMAGE_TOKEN for i in range(length)])
        first = time.perf_counter()
        for _ in range(job["new_tokens"] - 1):
            token = decode([token])
        end = time.perf_counter()
        return {"prefill_s": first - start, "decode_token_s": (end - first) / (job["new_tokens"] - 1)}

    answer_turns(run)


if __name__ == "__main__":
    if len(sys.argv) == 3 and sys.argv[1] in ("--peer", "--make-gguf"):
        job = json.loads(sys.argv[2])
        (make_gguf if sys.argv[1] == "--make-gguf" else llama_peer if job["peer"].startswith("llama") else torch_peer)(job)
    else:
        main()

"""Makes generation goldens with transformers: greedy and beam search, from token ids and pixels.

    python reference/hf_generate.py goldens/model [NAME ...]

Versions: transformers 5.23.0, torch 2.15.0, safetensors 0.8.0. Needs the folders of tiny_models.py.

    gen_images_<side>.safetensors   pixel_values f32 [n,3,side,side], the images that cases name by their row
    gen_<model>.json
        images          the file above
        first_padding   ids from here on (<image> and the rows after it) are never chosen; log-probabilities are taken
                        over all rows all the same
        cases[]         image, prompt (ids after the image tokens: BOS prefix "\\n"), and
            greedy      tokens (the EOS included when it came), logprobs of each, at most 20 new tokens
            beams       for 2, 3 and 4 beams: tokens, score (sum of logprobs; sequences_scores), at most 12 new tokens,
                        num_beams=N, length_penalty=0, early_stopping=False
            free        greedy without the ban on padding rows, where the model has strong ones (to see the ban matter)
        ragged          greedy cases with prompts of 3, 17 and 60 ids: what each row of a batch of the three must give

transformers does not ban the padding rows by itself; `suppress_tokens` does. It acts on the log-probabilities of beam
search after they are normalised and on the logits of greedy search, whose log-probabilities we take from the raw logits.

A case is kept only if f32 and f64 give the same tokens everywhere, so that no case hangs on a rounding; those dropped are
counted. For every greedy answer the tokens are also recomputed without a cache, the whole sequence at every step.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from hf_goldens import load

MODELS = {"pg1_mqa": 28, "pg2": 28, "pg1_gqa": 8}  # and how many cases


def example(model, pixels, prompt):
    c = model.config
    ids = torch.tensor([[c.image_token_id] * c.text_config.num_image_tokens + prompt])
    return dict(input_ids=ids, pixel_values=pixels[None].to(model.dtype), token_type_ids=torch.zeros_like(ids),
                attention_mask=torch.ones_like(ids))


def generate(model, x, banned=True, **options):
    c = model.config
    ban = list(range(c.image_token_id, c.text_config.vocab_size)) if banned else None
    out = model.generate(**x, do_sample=False, suppress_tokens=ban, eos_token_id=1, pad_token_id=0, bos_token_id=2,
                         return_dict_in_generate=True, output_logits=True, output_scores=True, **options)
    tokens = out.sequences[0, x["input_ids"].shape[1]:].tolist()
    if 1 in tokens:
        tokens = tokens[: tokens.index(1) + 1]
    return tokens, out


def greedy(model, x, banned=True):
    tokens, out = generate(model, x, banned, max_new_tokens=20)
    logprobs = [torch.log_softmax(l[0].float(), -1)[t].item() for l, t in zip(out.logits, tokens)]
    return dict(tokens=tokens, logprobs=[round(p, 6) for p in logprobs])


def recomputed(model, x):
    """Greedy by the forward pass alone: no cache, no generate."""
    c, tokens = model.config, []
    while len(tokens) < 20 and (not tokens or tokens[-1] != 1):
        new = torch.tensor([tokens], dtype=torch.long)
        y = dict(x, input_ids=torch.cat([x["input_ids"], new], 1), attention_mask=None,
                 token_type_ids=torch.cat([x["token_type_ids"], torch.ones_like(new)], 1))
        tokens.append(model(**y, use_cache=False).logits[0, -1, : c.image_token_id].argmax().item())
    return tokens


def beams(model, x):
    found = {}
    for n in (2, 3, 4):
        tokens, out = generate(model, x, max_new_tokens=12, num_beams=n, length_penalty=0.0, early_stopping=False)
        found[str(n)] = dict(tokens=tokens, score=round(out.sequences_scores.item(), 6))
    return found


@torch.no_grad()
def main(out, names):
    for name, wanted in MODELS.items():
        if names and name not in names:
            continue
        model, exact = load(out / name), load(out / name, torch.float64)
        c, g = model.config, torch.Generator().manual_seed(7)
        side, count = c.vision_config.image_size, 3
        images = torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(side)).float() / 127.5 - 1
        images_file = f"gen_images_{side}.safetensors"
        save_file({"pixel_values": images}, out / images_file)
        draw = lambda n: [2] + torch.randint(3, c.image_token_id, (n - 2,), generator=g).tolist() + [108]
        strong = exact.model.language_model.embed_tokens.weight[c.image_token_id:].square().mean() > 0.01
        cases, ragged, dropped = [], [], 0
        while len(cases) < wanted or len(ragged) < 3:
            is_ragged = len(cases) == wanted
            prompt = draw((3, 17, 60)[len(ragged)] if is_ragged else int(torch.randint(2, 20, (1,), generator=g)))
            image = (len(cases) + len(ragged)) % count
            answers = []
            for m in (model, exact):
                x = example(m, images[image], prompt)
                a = dict(image=image, prompt=prompt, greedy=greedy(m, x))
                assert recomputed(m, x) == a["greedy"]["tokens"], "cached and uncached decoding differ"
                if not is_ragged:
                    a["beams"] = beams(m, x)
                if strong:
                    a["free"] = greedy(m, x, banned=False)
                answers.append(a)
            plain = lambda a: (a["greedy"]["tokens"], [b["tokens"] for b in a.get("beams", {}).values()])
            if plain(answers[0]) != plain(answers[1]):
                dropped += 1
            else:
                (ragged if is_ragged else cases).append(answers[0])
        golden = dict(model=name, images=images_file, first_padding=c.image_token_id, cases=cases, ragged=ragged)
        lines = lambda rows: "[\n" + ",\n".join(json.dumps(r, separators=(",", ":")) for r in rows) + "\n]"
        head = ",\n".join(f"{json.dumps(k)}: {json.dumps(golden[k])}" for k in ("model", "images", "first_padding"))
        (out / f"gen_{name}.json").write_text(f'{{{head},\n"cases": {lines(cases)},\n"ragged": {lines(ragged)}}}\n')
        ends = lambda tokens: f"{len(tokens)}{'.' if tokens[-1] == 1 else ''}"
        print(name, "dropped", dropped, "| greedy", *(ends(a["greedy"]["tokens"]) for a in cases))
        for n in "234":
            print("  beams", n, *(ends(a["beams"][n]["tokens"]) for a in cases))
        print("  beam 3 differs from greedy in", sum(a["beams"]["3"]["tokens"] != a["greedy"]["tokens"][:12] for a in cases),
              "| padding chosen without the ban in", sum(max(a["free"]["tokens"]) >= c.image_token_id for a in cases if "free" in a))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])

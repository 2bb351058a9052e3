"""Makes beam-search goldens with big_vision's own decoder, for the prompts of hf_generate.py.

    python reference/bv_beams.py --big-vision DIR goldens/model [NAME ...]

Versions as in bv_goldens.py. Runs `_beam_decode` of big_vision/trainers/proj/paligemma/predict_fns.py itself; only
`_beam_make_output` is replaced, to hand out the score with the best sequence. The cache is f32 (bf16 by default).

    bv_gen_<model>.json
        settings        for Gemma 1 one entry, "plain"; for Gemma 2 two:
            "capped"    final_logits_softcap as in the config. big_vision then caps every token but the first, whose
                        logits come from compute_logits, which returns before the cap.
            "uncapped"  final_logits_softcap = 0, what big_vision's transfer recipes set; nothing is capped at the end
                        (the attention's cap stays).
          each: for 2, 3 and 4 beams a list, one entry a case of gen_<model>.json in its order:
            tokens      the best sequence, at most 12 tokens, its EOS included
            score       the sum of its tokens' log-probabilities

The rule. At each step every live beam's EOS is scored, however improbable, and the best finished sequence so far is kept
(so an answer always ends in EOS, a 12-token one too); then each live beam offers its N+1 best tokens, EOS struck out, and
the best N live on. It stops when no live beam scores at least as much as the best finished one. There is no ban on rows:
the padding rows of these models are weak and never reach a beam, which is asserted.

A case must give the same tokens after a relative change of 1e-6 to every weight, so that no case hangs on a rounding; it is
stored as null where it does not.
"""

import json
import warnings

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from bv_goldens import args, load, load_file
from big_vision.trainers.proj.paligemma import predict_fns

warnings.filterwarnings("ignore", message="Some donated buffers")

MODELS = ("pg1_mqa", "pg2")
LENGTH = 12

predict_fns._beam_make_output = lambda state: (
    state[0][:, 0], predict_fns._compute_score(state[0], state[1], 1)[:, 0])


def batch_of(cases, images):
    longest = max(len(c["prompt"]) for c in cases)
    text = np.zeros((len(cases), longest), np.int32)
    valid = np.zeros((len(cases), longest), bool)
    for i, c in enumerate(cases):
        text[i, : len(c["prompt"])], valid[i, : len(c["prompt"])] = c["prompt"], True
    return dict(image=images[[c["image"] for c in cases]].transpose(0, 2, 3, 1), text=text, mask_input=valid,
                mask_ar=np.zeros_like(text), _mask=np.ones(len(cases), bool))


def decode(model, p, batch, beams):
    tokens, scores = predict_fns._beam_decode(
        {"params": p}, batch, model=model, devices=np.array(jax.devices()), max_decode_len=LENGTH, eos_token=1, beam_size=beams)
    tokens = [t[: t.index(1) + 1] for t in np.asarray(tokens).tolist()]
    return [dict(tokens=t, score=round(float(s), 6)) for t, s in zip(tokens, np.asarray(scores))]


def shaken(p, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x * jnp.asarray(1 + 1e-6 * rng.standard_normal(x.shape), x.dtype), p)


def main():
    for name in args.names or MODELS:
        golden = json.loads((args.out / f"gen_{name}.json").read_text())
        images = load_file(args.out / golden["images"])["pixel_values"]
        batch = batch_of(golden["cases"], images)
        settings = {}
        for setting in ("capped", "uncapped") if name == "pg2" else ("plain",):
            config, model, p = load(args.out / name)
            if setting == "uncapped":
                model = model.clone(llm=ml_collections.FrozenConfigDict({**model.llm, "final_logits_softcap": 0.0}))
            settings[setting] = {}
            for n in (2, 3, 4):
                found = decode(model, p, batch, n)
                assert max(max(f["tokens"]) for f in found) < golden["first_padding"]
                for again in (decode(model, shaken(p, s), batch, n) for s in (1, 2)):
                    found = [f if f and f["tokens"] == a["tokens"] else None for f, a in zip(found, again)]
                settings[setting][str(n)] = found
                alone = decode(model, p, {k: v[:1] for k, v in batch.items()}, n)[0]
                theirs = [c["beams"][str(n)] for c in golden["cases"]]
                both = [(f, t) for f, t in zip(found, theirs) if f]
                print(name, setting, "beams", n, "unstable", found.count(None), "| first case alone the same:", alone["tokens"] == found[0]["tokens"],
                      "| as transformers:", sum(f["tokens"] == t["tokens"] for f, t in both), "of", len(both),
                      "| lengths", *(len(f["tokens"]) for f, _ in both))
        rows = lambda found: "[\n" + ",\n".join(json.dumps(f, separators=(",", ":")) for f in found) + "]"
        body = ",\n".join(f'"{s}": {{' + ",\n".join(f'"{n}": {rows(f)}' for n, f in by.items()) + "}" for s, by in settings.items())
        (args.out / f"bv_gen_{name}.json").write_text(f'{{"model": "{name}",\n"settings": {{\n{body}}}}}\n')


if __name__ == "__main__":
    main()

"""What peft makes of an adapter that `paligemma train RUN --export` wrote: logits of goldens/e2e/pg2 with it → goldens/train.

    python reference/peft_reads.py goldens/e2e goldens/image/files goldens/train

Made with torch 2.15.0, transformers 5.23.0, peft 0.21.2, f32. The folder `adapter_ours/` is ours: twelve steps on `data.jsonl`,
rank 2, alpha 3, on the decoder's queries and down projections, the image encoder's last values, and the projector. peft must
give adapters to exactly the layers that the folder has tensors for. `adapter_ours.json` has every 97th logit of each third
position of the first two examples, after image, prefix and suffix, and what the base model alone says.
"""

import json
import sys
import tempfile
from pathlib import Path

import peft
import torch
from safetensors import safe_open

from hf_training import examples, load

STEP, EACH = 97, 3


def main(e2e, files, out):
    adapter = out / "adapter_ours"
    with safe_open(adapter / "adapter_model.safetensors", "pt") as f:
        stored = {k: f.get_tensor(k) for k in f.keys()}
    with tempfile.TemporaryDirectory() as tmp:
        model, processor = load(e2e / "pg2", e2e, Path(tmp))
        model.eval()
        data = examples(processor, files)[:2]

        def logits():
            with torch.no_grad():
                return [model(**{k: v for k, v in x.items() if k != "labels"}, labels=x["labels"]).logits[0] for x in data]

        base = logits()
        model = peft.PeftModel.from_pretrained(model, adapter).eval()
        held = peft.get_peft_model_state_dict(model)
        assert held.keys() == stored.keys(), held.keys() ^ stored.keys()
        assert all(torch.equal(held[k], stored[k]) for k in stored)
        tuned = logits()
    cases = []
    for x, with_adapter, without in zip(data, tuned, base):
        moved = (with_adapter - without).abs().max().item()
        assert moved > 0.05, moved
        # The reference is f32 to the sixth digit.
        rows = [[round(v, 6) for v in row[::STEP].tolist()] for row in with_adapter[::EACH]]
        text = x["input_ids"][0][x["input_ids"][0] != model.config.image_token_id].tolist()
        cases.append(dict(ids=text, prefix=int((x["token_type_ids"] == 0).sum()), logits=rows))
    (out / "adapter_ours.json").write_text(json.dumps(dict(step=STEP, each=EACH, cases=cases)) + "\n")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

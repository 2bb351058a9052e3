"""Makes big_vision npz checkpoints of tiny models, and proves that big_vision itself reads them.

    python reference/bv_npz.py --big-vision DIR goldens/model

Versions as in bv_goldens.py. Reads the folders of tiny_models.py and the hf_ goldens; the conversion is the one of bv_goldens.py.

    pg1_mha.bf16.npz      Gemma 1 with one qkv_einsum; names under `params/`; bf16, which numpy writes as 2-byte void
    pg2_27b_like.f16.npz  Gemma 2 with q_einsum and kv_einsum; no `params/`; f16

Layers are stacked, names joined by "/", as in the published files. The values are those of the folder, bit for bit. Each
file is loaded by paligemma.load (load_params, scan_to_pyloop and the rest) and its logits compared with bv_<model>.safetensors.
"""

import jax
import jax.numpy as jnp
import numpy as np

from bv_goldens import args, load, load_file, ml_collections, paligemma, text_of
import big_vision.utils as u

FILES = {"pg1_mha": ("bf16", jnp.bfloat16, "params/"), "pg2_27b_like": ("f16", np.float16, "")}


def main():
    for name, (suffix, dtype, prefix) in FILES.items():
        config, model, p = load(args.out / name)
        leaves = {prefix + k: np.asarray(v).astype(dtype) for k, v in u.tree_flatten_with_names(p)[0]}
        assert all((v.astype(np.float32) == np.asarray(w)).all() for v, (_, w) in zip(leaves.values(), u.tree_flatten_with_names(p)[0]))
        file = args.out / f"{name}.{suffix}.npz"
        np.savez(file, **leaves)
        settings = ml_collections.ConfigDict(dict(img=dict(model.img), llm=dict(model.llm)))
        read = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), paligemma.load(None, str(file), settings))
        golden = load_file(args.out / f"bv_{name}.safetensors")
        _, out = jax.jit(model.apply)({"params": read}, *text_of(config, golden))
        apart = float(abs(np.asarray(out["llm/logits"]) - golden["logits"]).max())
        print(file.name, f"{len(leaves)} arrays, logits from its golden {apart}")
        for k, v in leaves.items():
            print("  ", k, v.shape, np.load(file)[k].dtype)


if __name__ == "__main__":
    main()

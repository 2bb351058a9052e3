"""Twenty steps of each optimiser and schedule, as optax, torch and big_vision have them → goldens/train/optimisers.json.

    python reference/optimisers.py --big-vision DIR goldens/train    # DIR: a checkout of google-research/big_vision

Made with torch 2.15.0, optax 0.2.8, jax 0.10.2, big_vision 0127fb6. The compositions are those of big_vision/optax.py
(`make`) and the schedules those of big_vision/utils.py, of which only these two files are needed. Gradients are those of
a quadratic with a rotating part, so that they depend on the parameters and errors would grow.
"""

import argparse
import ast
import json
import pathlib
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch

parser = argparse.ArgumentParser()
parser.add_argument("--big-vision", required=True, type=pathlib.Path)
parser.add_argument("out", type=pathlib.Path)
args = parser.parse_args()

SHAPES = {"matrix": (40, 33), "tall": (64, 32), "small": (5, 31), "vector": (17,)}
STEPS = 20


def load(file, names):
  """Only some functions of a file: the rest of it imports what is not needed here."""
  tree = ast.parse((args.big_vision / "big_vision" / file).read_text())
  tree.body = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
  module = types.ModuleType(file)
  module.__dict__.update(jax=jax, jnp=jnp, optax=optax, np=np)
  exec(compile(tree, file, "exec"), module.__dict__)
  return module


adafactor = load("optax.py", ["scale_by_adafactor"]).scale_by_adafactor
utils = load("utils.py", ["create_learning_rate_schedule", "steps"])


def numbers(seed, shape):
  """Small whole numbers over 64: they are the same in every program."""
  n = int(np.prod(shape))
  x = (np.arange(n, dtype=np.int64) * 7919 + seed * 104729) % 1009
  return ((x - 504) / 512).astype(np.float32).reshape(shape)


def start():
  return {name: numbers(i, shape) for i, (name, shape) in enumerate(SHAPES.items())}


def gradients(params, step):
  """Linear in the parameters, with a part that changes from step to step."""
  return {name: params[name] * np.float32(0.5) + numbers(100 + step * 10 + i, SHAPES[name])
          for i, name in enumerate(SHAPES)}


def with_optax(tx, clip, lr, wd, schedule, round_first=False):
  tx = optax.chain(optax.clip_by_global_norm(clip) if clip else optax.identity(), tx, optax.scale(lr),
                   optax.add_decayed_weights(wd) if wd else optax.identity(),
                   optax.scale_by_schedule(schedule), optax.scale(-1.0))
  params = jax.tree.map(jnp.asarray, start())
  state = tx.init(params)
  for step in range(STEPS):
    grads = jax.tree.map(jnp.asarray, gradients({k: np.asarray(v) for k, v in params.items()}, step))
    updates, state = tx.update(grads, state, params)
    if round_first:
      rounded = lambda s: s._replace(mu=jax.tree.map(lambda m: m.astype(jnp.bfloat16).astype(jnp.float32), s.mu)) \
          if isinstance(s, optax.ScaleByAdamState) else s
      state = jax.tree.map(rounded, state, is_leaf=lambda s: isinstance(s, optax.ScaleByAdamState))
    params = optax.apply_updates(params, updates)
  return {k: np.asarray(v) for k, v in params.items()}


def with_torch(make, clip, schedule):
  params = {k: torch.nn.Parameter(torch.tensor(v)) for k, v in start().items()}
  optimiser = make(list(params.values()))
  base = optimiser.param_groups[0]["lr"]
  for step in range(STEPS):
    grads = gradients({k: v.detach().numpy() for k, v in params.items()}, step)
    for k, v in params.items():
      v.grad = torch.tensor(grads[k])
    if clip:
      torch.nn.utils.clip_grad_norm_(list(params.values()), clip)
    optimiser.param_groups[0]["lr"] = base * float(schedule(step))
    optimiser.step()
  return {k: v.detach().numpy() for k, v in params.items()}


def big_vision(decay, **kw):
  return utils.create_learning_rate_schedule(total_steps=STEPS, decay_type=decay, **kw)


schedules = {
    "constant": lambda step: 1.0,
    "linear": big_vision("linear", warmup_steps=5),
    "cosine": big_vision("cosine", warmup_steps=4),
    "rsqrt": big_vision("rsqrt", warmup_steps=3, timescale=7, cooldown_steps=6),
}
cosine, constant = schedules["cosine"], schedules["constant"]
adam = dict(b1=0.9, b2=0.999, eps=1e-8)
# optax's own muon has Nesterov's momentum in its Adam too.
muon = optax.partition(
    {True: optax.contrib.muon(-1.0, consistent_rms=0.2), False: optax.scale_by_adam(**adam)},
    lambda params: jax.tree.map(lambda x: x.ndim == 2, params))
runs = {
    "adam": with_optax(optax.scale_by_adam(**adam), 1.0, 0.01, 1e-3, cosine),
    "adam_bf16": with_optax(optax.scale_by_adam(**adam), 0, 0.01, 0, constant, round_first=True),
    "adamw": with_torch(lambda p: torch.optim.AdamW(p, lr=0.01, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1), 1.0, cosine),
    "adafactor": with_optax(adafactor(dtype_momentum=jnp.float32), 0, 0.01, 1e-3, cosine),
    "adafactor_plain": with_optax(adafactor(momentum=None), 0, 0.01, 0, constant),
    "muon": with_optax(muon, 1.0, 0.05, 1e-3, cosine),
    "sgd": with_optax(optax.identity(), 1.0, 0.05, 0, cosine),
    "sgd_momentum": with_torch(lambda p: torch.optim.SGD(p, lr=0.02, momentum=0.9), 0, cosine),
}
out = {
    "steps": STEPS,
    "schedules": {k: [float(f(step)) for step in range(STEPS + 1)] for k, f in schedules.items()},
    "runs": {k: {name: [float(x) for x in v.reshape(-1)[:: max(1, v.size // 40)]] for name, v in run.items()}
             for k, run in runs.items()},
}
args.out.mkdir(parents=True, exist_ok=True)
(args.out / "optimisers.json").write_text(json.dumps(out) + "\n")

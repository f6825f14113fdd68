"""Three updates of AdamW, which parameters it decays, and the learning rates of a run."""

from collections.abc import Callable, Iterator
from functools import cache, partial
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax

from golden_cases.base import Comparison, Folder, GoldenError, Group, close, exact, mostly_close
from golden_cases.layout import Arrays, to_reference
from golden_cases.training import norm
from umd_eqx.models import AutoEncoder, from_reference
from umd_eqx.training.optim import decayed, horizon, schedule
from umd_eqx.training.optimisers import AdamW

Kind = Literal["eager", "jit", "f32mu"]
SUFFIX: dict[Kind, str] = {"eager": "", "jit": "_jit", "f32mu": "_f32mu"}
BFLOAT16_STEP = 2e-5
"""How far a bfloat16 first moment may be off where no rounding flipped."""


class Trace(NamedTuple):
    """What the updates of one kind leave behind, in the reference's names."""

    start: Arrays
    params: list[Arrays]
    mu: Arrays
    nu: Arrays
    update_norms: list[float]


class Flat(NamedTuple):
    """All leaves in two arrays, by what weight decay makes of these names."""

    kernel: jax.Array
    bias: jax.Array


def _flat(leaves: Arrays, decays: dict[str, bool]) -> Flat:
    def join(flag: bool) -> jax.Array:
        return jnp.asarray(np.concatenate([leaves[name].ravel() for name in decays if decays[name] is flag]))

    return Flat(kernel=join(True), bias=join(False))


def _unflat(flat: Flat, like: Arrays, decays: dict[str, bool]) -> Arrays:
    rest = {True: np.asarray(flat.kernel), False: np.asarray(flat.bias)}
    leaves = {}
    for name, flag in decays.items():
        leaves[name] = rest[flag][: like[name].size].reshape(like[name].shape)
        rest[flag] = rest[flag][like[name].size :]
    return leaves


def _start(folder: Folder) -> AutoEncoder:
    """The recorded parameters that the recorded gradients are of, without labels."""
    leaves = set(folder.files["adamw"].under("grad1"))
    for kind in folder.kinds("params"):
        params = folder.files[f"params_{kind}"]
        if {name for name in params if not name.startswith("label_")} == leaves:
            return from_reference(params, labels=False)
    raise GoldenError("adamw.npz: no params file has the leaves of its grad1")


def _decays(model: AutoEncoder) -> dict[str, np.ndarray]:
    """Where weight decay applies, element by element."""
    return to_reference(jax.tree.map(lambda flag, leaf: np.full(leaf.shape, flag), decayed(model), model))


def _config(folder: Folder, kind: Kind) -> AdamW:
    b1, b2, eps, decay, clip, peak, warmup, total = (float(value) for value in folder.files["adamw"]["hparams"])
    if eps != 1e-8:
        raise GoldenError(f"adamw.npz: recorded with eps {eps}; ours is always 1e-8")
    config = AdamW(
        lr=peak,
        lr_batch_size=None,
        steps=int(total),
        warmup=(warmup + 0.5) / total,  # a share, of which the whole steps are taken
        beta1=b1,
        beta2=b2,
        weight_decay=decay,
        clip=clip,
        mu_dtype="float32" if kind == "f32mu" else "bfloat16",
    )
    if horizon(config, 1, 1) != (int(warmup), int(total)):
        raise GoldenError(f"adamw.npz: {warmup} of {total} steps are no warm-up")
    return config


@cache
def _adamw(config: AdamW) -> optax.GradientTransformation:
    # Made once for each configuration: the compiler knows functions by identity.
    return config.transformation(schedule(config, 1, 1))


def _step(optimiser: optax.GradientTransformation, model: Any, state: Any, grads: Any) -> tuple[Any, Any, Any]:
    """(parameters, state, updates) after one update."""
    updates, state = optimiser.update(grads, state, model)
    return eqx.apply_updates(model, updates), state, updates


@cache
def _jitted(optimiser: optax.GradientTransformation) -> Callable[[Any, Any, Any], tuple[Any, Any, Any]]:
    return eqx.filter_jit(partial(_step, optimiser))


def _trace(folder: Folder, kind: Kind) -> Trace:
    recorded = folder.files["adamw"]
    steps = sorted({int(key.split("/")[0][4:]) for key in recorded if key.startswith("grad") and "/" in key})

    def compute() -> Trace:
        optimiser = _adamw(_config(folder, kind))
        model = _start(folder)
        start = to_reference(model)
        step = partial(_step, optimiser) if kind == "eager" else _jitted(optimiser)
        load: Callable[[Arrays], Any] = partial(from_reference, labels=False)
        save: Callable[[Any], Arrays] = to_reference
        if kind != "f32mu":
            # Every operation would be compiled for every shape of a leaf, 20 seconds of it. One kind on the real tree,
            # the one that is held to the tightest tolerance, shows that the tree makes no difference.
            decays = {name: bool(mask.all()) for name, mask in _decays(model).items()}
            load, save = partial(_flat, decays=decays), partial(_unflat, like=start, decays=decays)
            model = load(start)
        state, params, update_norms = optimiser.init(model), [], []
        for i in steps:
            model, state, updates = step(model, state, load(recorded.under(f"grad{i}")))
            params.append(save(model))
            update_norms.append(norm(jax.tree.leaves(updates)))
        adam = next(part for part in state if isinstance(part, optax.ScaleByAdamState))
        mu, nu = (save(jax.tree.map(lambda leaf: leaf.astype(jnp.float32), moment)) for moment in (adam.mu, adam.nu))
        return Trace(start, params, mu, nu, update_norms)

    return folder.once(f"adamw {kind}", compute)


def _recorded(folder: Folder, kind: Kind) -> Iterator[tuple[str, Any, np.ndarray]]:
    """(name, ours, recorded) of everything that is recorded of a kind."""
    recorded, trace = folder.files["adamw"], _trace(folder, kind)
    for i, params in enumerate(trace.params, start=1):
        for name, value in recorded.under(f"p{i}{SUFFIX[kind]}").items():
            yield f"p{i}/{name}", params[name], value
    delta = f"delta{len(trace.params)}{SUFFIX[kind]}"
    for name, value in recorded.under(delta).items():
        yield f"{delta}/{name}", trace.params[-1][name] - trace.start[name], value
    if f"update_norms{SUFFIX[kind]}" in recorded:
        yield "update_norms", np.asarray(trace.update_norms), recorded[f"update_norms{SUFFIX[kind]}"]
    if kind == "eager":
        last = len(trace.params)
        for moment, ours in ((f"mu{last}", trace.mu), (f"nu{last}", trace.nu)):
            for name, value in recorded.under(moment).items():
                yield f"{moment}/{name}", ours[name], value
        if "param_norms" in recorded:
            norms = np.asarray([norm(params.values()) for params in trace.params])
            yield "param_norms", norms, recorded["param_norms"]


def _float32(folder: Folder) -> Iterator[Comparison]:
    for what, ours, value in _recorded(folder, "f32mu"):
        yield close(f"f32mu {what}", ours, value)
    recorded = folder.files["adamw"]
    if "lr_used" in recorded:
        lr = schedule(_config(folder, "f32mu"), 1, 1)
        used = recorded["lr_used"]
        yield close("lr_used", np.asarray([lr(jnp.asarray(i)) for i in range(used.size)]), used)
    if "grad_norms" in recorded:
        count = recorded["grad_norms"].size
        ours = [optax.tree.norm(recorded.under(f"grad{i}")) for i in range(1, count + 1)]
        yield close("grad_norms", np.asarray(ours), recorded["grad_norms"])


def _eager(folder: Folder) -> Iterator[Comparison]:
    for what, ours, value in _recorded(folder, "eager"):
        yield mostly_close(f"eager {what}", ours, value, BFLOAT16_STEP)


def _jit(folder: Folder) -> Iterator[Comparison]:
    for what, ours, value in _recorded(folder, "jit"):
        yield mostly_close(f"jit {what}", ours, value, BFLOAT16_STEP)


def _decayed(folder: Folder) -> Iterator[Comparison]:
    model = _start(folder)
    mask = _decays(model)
    for name, value in folder.files["adamw"].under("decay").items():
        yield exact(f"decay {name}", mask[name], np.full(mask[name].shape, bool(value)))


def _schedules(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["lr_schedule"]
    for name in [key.removesuffix("/lr") for key in recorded if key.endswith("/lr")]:
        ntrain, batch = int(recorded.scalar(f"{name}/ntrain")), int(recorded.scalar(f"{name}/batch"))
        config = AdamW(lr=recorded.scalar(f"{name}/peak_lr"), epochs=recorded.scalar(f"{name}/epochs"))
        warmup, total = horizon(config, ntrain, batch)
        # Whole steps: one too many is 1 in a group whose tolerance is millionths.
        yield exact(f"{name}/warmup_steps", np.asarray(warmup), recorded[f"{name}/warmup_steps"])
        yield exact(f"{name}/total_steps", np.asarray(total), recorded[f"{name}/total_steps"])
        rates = jax.jit(schedule(config, ntrain, batch))(jnp.asarray(recorded[f"{name}/steps"], jnp.int32))
        peak = config.lr * batch / 256
        yield close(f"{name}/lr", rates, recorded[f"{name}/lr"], scale=peak)


_ADAMW = ("adamw", "params_*")
GROUPS = (
    Group("AdamW, float32 first moment", _ADAMW, 1e-6, _float32),
    Group("AdamW, bfloat16, eager (share out)", _ADAMW, 0.01, _eager),
    Group("AdamW, bfloat16, jit (share out)", _ADAMW, 0.01, _jit),
    Group("AdamW, decayed leaves", _ADAMW, 0.0, _decayed),
    Group("learning-rate schedule (of the peak)", ("lr_schedule",), 2e-6, _schedules),
)

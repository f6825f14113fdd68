"""The Flax linen baseline of the speed benchmark: the published training step.

It follows the description of the method (arXiv 2406.17688) and does not use the authors' code: float32, encoder and
decoder layers under `nn.scan`, every layer rematerialised, and an AdamW step with donated buffers. Parameters have the
names and layouts of the reference implementation, so both implementations can load the same weights. All random numbers
are inputs, so both can be given the same draws. Needs `pip install "umd_eqx[bench]"`.

    baseline = build("umd", "B", patch=4, image_size=64)
    params = baseline.init(jax.random.key(0))
    opt_state = baseline.optimiser.init(params)
    inputs = draw("umd", jax.random.key(1), batch=8, num_patches=256, image_shape=(64, 64, 3))
    params, opt_state, loss = baseline.train_step(params, opt_state, inputs)

The network is in `flax_network`. Shapes: b images of h x w x c; n patches. Masks are 1 where a patch is hidden.
"""

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import traverse_util
from flax_network import LOOP_NAME, SCAN_NAME, AutoEncoder, Variant
from jax import Array

Params = dict[str, Any]


class System(NamedTuple):
    """Settings of a published system; `no_noise` is the fraction of the batch that is reconstructed without noise."""

    no_noise: float
    mask_noisy: float
    mask_clean: float
    adaln: bool
    batch: int


class Inputs(NamedTuple):
    """A batch and its random numbers: the first b1 images are noised, the last b0 = int(b * no_noise) stay clean.

    Surplus rows are ignored: those of `t_index`, `eps` and `u_noisy` after b1, and those of `u_clean` after b0.
    """

    image: Array  # (b, h, w, c) in [-1, 1]
    t_index: Array  # (b1,) diffusion steps, 0 .. 999
    eps: Array  # (b1, h, w, c) standard normal
    u_noisy: Array  # (b1, n) uniform; the patches with the smallest values stay visible
    u_clean: Array  # (b0, n)


VARIANTS = {"S": Variant(384, 12, 4, 6), "B": Variant(768, 12, 4, 12), "L": Variant(1024, 24, 8, 16)}
SYSTEMS = {
    "umd": System(0.5, 0.375, 0.75, True, 1024),
    "mae": System(1.0, 0.0, 0.75, False, 4096),
    "dit": System(0.0, 0.0, 0.0, True, 1024),
    "maskdit": System(0.0, 0.5, 0.0, True, 1024),
}


def cosine_abar(steps: int = 1000) -> np.ndarray:
    """Returns the (steps,) cumulative products of 1 - beta of the cosine schedule in float64."""
    u = np.arange(steps + 1) / steps
    abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - abar[1:] / abar[:-1], 0.999))


def unified_terms(apply: Callable, system: System, params: Params, inputs: Inputs) -> dict[str, Array]:
    """Returns the unified loss as `loss`, and its terms. `apply(params, image, t, u, ratio)` evaluates the network."""
    image = inputs.image
    b, *_, c = image.shape
    b0 = int(b * system.no_noise)
    b1 = b - b0
    terms, total = {}, jnp.zeros(())
    if b1:
        abar, t = cosine_abar(), inputs.t_index[:b1]
        signal, noise = (jnp.asarray(np.sqrt(a), jnp.float32)[t][:, None, None, None] for a in (abar, 1 - abar))
        x0, eps = image[:b1], inputs.eps[:b1]
        # The time of the network is the diffusion index plus one, because 0 denotes a clean image.
        prediction, _, mask = apply(params, signal * x0 + noise * eps, t + 1, inputs.u_noisy[:b1], system.mask_noisy)
        x0_error, eps_error = (prediction[..., :c] - x0) ** 2, (prediction[..., c:] - eps) ** 2
        if system.mask_noisy > 0:  # eps on visible patches, x0 on hidden patches
            terms["eps_loss"] = (eps_error * (1 - mask)).mean() / (1 - mask).mean()
            terms["x0_loss"] = (x0_error * mask).mean() / mask.mean()
        else:
            terms["eps_loss"], terms["x0_loss"] = eps_error.mean(), x0_error.mean()
        terms["dit_loss"] = (terms["eps_loss"] + terms["x0_loss"]) / 2
        total += terms["dit_loss"] * (b1 / b)
    if b0:
        x0 = image[b1:]
        prediction, _, mask = apply(params, x0, jnp.zeros((b0,), jnp.int32), inputs.u_clean[:b0], system.mask_clean)
        terms["mae_loss"] = (((prediction[..., :c] - x0) ** 2) * mask).mean() / mask.mean()
        total += terms["mae_loss"] * (b0 / b)
    return terms | {"loss": total}


def decayed(params: Params) -> Params:
    """Returns the mask of weight decay: true except for biases, class tokens and the mask embedding."""
    excluded = {"bias", "cls", "image_mask_embedding"}
    return unflatten({name: excluded.isdisjoint(name.split("/")) for name in flatten(params)})


def adamw(peak_lr: float, warmup_steps: int, total_steps: int) -> optax.GradientTransformation:
    """Returns the published optimiser: AdamW with gradient clipping, linear warm-up and cosine decay to zero.

    The first moment is stored in bfloat16.
    """
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak_lr, warmup_steps, total_steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.05, mu_dtype=jnp.bfloat16, mask=decayed),
    )


def published_optimiser(batch: int, images: int = 1_268_355, epochs: int = 800) -> optax.GradientTransformation:
    """Returns `adamw` with peak rate 1.5e-4 per 256 images of a batch and warm-up over 5 % of the `epochs`."""
    return adamw(1.5e-4 * batch / 256, int(0.05 * epochs) * images // batch, round(epochs * images / batch))


class Baseline(NamedTuple):
    """The network, loss, optimiser and training step of a system."""

    init: Callable[[Array], Params]
    apply: Callable[..., tuple[Array, Array, Array]]  # params, then the arguments of `AutoEncoder.__call__`
    terms: Callable[[Params, Inputs], dict[str, Array]]
    loss: Callable[[Params, Inputs], Array]
    optimiser: optax.GradientTransformation
    train_step: Any  # jitted (params, opt_state, inputs) -> (params, opt_state, loss); its first two are donated


def build(
    system: str | System,
    variant: str | Variant,
    patch: int,
    image_size: int,
    channels: int = 3,
    *,
    scan: bool = True,
    remat: bool = True,
    optimiser: optax.GradientTransformation | None = None,
) -> Baseline:
    """Builds the baseline of a system ("umd", "mae", "dit", "maskdit") in a variant ("S", "B", "L").

    A `System` and a `Variant` are accepted in place of the names.
    """
    system = SYSTEMS[system] if isinstance(system, str) else system
    variant = VARIANTS[variant] if isinstance(variant, str) else variant
    network = AutoEncoder(variant, patch, system.adaln, scan, remat)
    optimiser = published_optimiser(system.batch) if optimiser is None else optimiser

    @jax.jit
    def init(key: Array) -> Params:
        image, draws = jnp.zeros((1, image_size, image_size, channels)), jnp.zeros((1, (image_size // patch) ** 2))
        variables: Any = network.init(key, image, jnp.zeros((1,), jnp.int32), draws, 0.0)
        return variables["params"]

    def apply(params: Params, image: Array, t: Array, u: Array, mask_ratio: float) -> tuple[Array, Array, Array]:
        return network.apply({"params": params}, image, t, u, mask_ratio)  # pyright: ignore[reportReturnType]

    terms = partial(unified_terms, apply, system)

    def loss(params: Params, inputs: Inputs) -> Array:
        return terms(params, inputs)["loss"]

    @partial(jax.jit, donate_argnums=(0, 1))
    def train_step(params: Params, opt_state: optax.OptState, inputs: Inputs) -> tuple[Params, optax.OptState, Array]:
        value, grads = jax.value_and_grad(loss)(params, inputs)
        updates, opt_state = optimiser.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, value  # pyright: ignore[reportReturnType]

    return Baseline(init, apply, terms, loss, optimiser, train_step)


def draw(system: str | System, key: Array, batch: int, num_patches: int, image_shape: tuple[int, int, int]) -> Inputs:
    """Draws uniform images and the random numbers of one training step of `system`."""
    system = SYSTEMS[system] if isinstance(system, str) else system
    b0 = int(batch * system.no_noise)
    b1 = batch - b0
    k_image, k_t, k_eps, k_noisy, k_clean = jax.random.split(key, 5)
    return Inputs(
        image=jax.random.uniform(k_image, (batch, *image_shape), minval=-1.0, maxval=1.0),
        t_index=jax.random.randint(k_t, (b1,), 0, 1000),
        eps=jax.random.normal(k_eps, (b1, *image_shape)),
        u_noisy=jax.random.uniform(k_noisy, (b1, num_patches)),
        u_clean=jax.random.uniform(k_clean, (b0, num_patches)),
    )


# Convert nested parameters to a flat dictionary of '/'-joined names, and back.
flatten, unflatten = (partial(f, sep="/") for f in (traverse_util.flatten_dict, traverse_util.unflatten_dict))


def stack_layers(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Stacks `Encoder/Encoder1DBlock_<i>/...` along a leading axis as `Encoder/ScanCheckpointEncoder1DBlock_0/...`."""
    stacked: dict[str, Any] = {}
    layers: dict[str, dict[int, Any]] = {}
    for name, leaf in flat.items():
        if match := re.fullmatch(rf"(Encoder|Decoder)/{LOOP_NAME}(\d+)/(.+)", name):
            stack, index, rest = match.groups()
            layers.setdefault(f"{stack}/{SCAN_NAME}/{rest}", {})[int(index)] = leaf
        else:
            stacked[name] = leaf
    return stacked | {name: jnp.stack([by_index[i] for i in sorted(by_index)]) for name, by_index in layers.items()}


def unstack_layers(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Inverts `stack_layers`."""
    rest = {name: leaf for name, leaf in flat.items() if SCAN_NAME not in name}
    layers = ((name, i, layer) for name in flat.keys() - rest.keys() for i, layer in enumerate(flat[name]))
    return rest | {name.replace(SCAN_NAME, f"{LOOP_NAME}{i}"): layer for name, i, layer in layers}

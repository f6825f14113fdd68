"""The speed benchmark's other side: the published setting, written plainly in Flax linen.

A rendering of the method's description (paper: arXiv 2406.17688), not the authors' code: float32, the layers of encoder
and decoder under `nn.scan`, every layer rematerialised, and a donated AdamW step. Names and layouts of the parameters
are the reference's, so that both sides of a comparison load the same weights; every random number is an input, so that
both are given the same draws. Needs `pip install "umd_eqx[bench]"`.

    baseline = build("umd", "B", patch=4, image_size=64)
    params = baseline.init(jax.random.key(0))
    opt_state = baseline.optimiser.init(params)
    inputs = draw("umd", jax.random.key(1), batch=8, num_patches=256, image_shape=(64, 64, 3))
    params, opt_state, loss = baseline.train_step(params, opt_state, inputs)

Shapes: b images of h x w x c; n patches, k of them visible; s tokens; width d. Masks are 1 where a patch is hidden.
"""

import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import traverse_util
from jax import Array

Params = dict[str, Any]
LOOP_NAME, SCAN_NAME = "Encoder1DBlock_", "ScanCheckpointEncoder1DBlock_0"


class Variant(NamedTuple):
    """Size of the network; the MLP is four times the width."""

    width: int
    encoder_depth: int
    decoder_depth: int
    heads: int


class System(NamedTuple):
    """What tells the published systems apart; `no_noise` is the share of the batch that is reconstructed unnoised."""

    no_noise: float
    mask_noisy: float
    mask_clean: float
    adaln: bool
    batch: int


class Inputs(NamedTuple):
    """One batch with its randomness: the first b1 images are noised, the last b0 = int(b * no_noise) stay clean.

    Rows of `t_index`, `eps` and `u_noisy` beyond b1, and of `u_clean` beyond b0, are ignored.
    """

    image: Array  # (b, h, w, c) in [-1, 1]
    t_index: Array  # (b1,) diffusion steps, 0 .. 999
    eps: Array  # (b1, h, w, c) standard normal
    u_noisy: Array  # (b1, n) uniform; the patches with the smallest draws stay visible
    u_clean: Array  # (b0, n)


VARIANTS = {"S": Variant(384, 12, 4, 6), "B": Variant(768, 12, 4, 12), "L": Variant(1024, 24, 8, 16)}
SYSTEMS = {
    "umd": System(0.5, 0.375, 0.75, True, 1024),
    "mae": System(1.0, 0.0, 0.75, False, 4096),
    "dit": System(0.0, 0.0, 0.0, True, 1024),
    "maskdit": System(0.0, 0.5, 0.0, True, 1024),
}


class Mlp(nn.Module):
    """Dense, activation, Dense: a layer's MLP and, with other settings, the time embedding's."""

    factor: int
    activation: Callable[[Array], Array]
    kernel_init: Callable = nn.initializers.lecun_normal()
    bias_init: Callable = nn.initializers.zeros

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """(..., d) -> (..., d)."""
        dense = partial(nn.Dense, kernel_init=self.kernel_init, bias_init=self.bias_init)
        hidden = self.activation(dense(self.factor * x.shape[-1])(x))
        return dense(x.shape[-1])(hidden)


class Block(nn.Module):
    """One pre-LN layer, conditioned by AdaLN-zero or by a token of its own."""

    heads: int
    adaln: bool

    @nn.compact
    def __call__(self, x: Array, cond: Array) -> tuple[Array, None]:
        """(b, s, d), (b, d) -> (b, s, d), with the empty output that `nn.scan` wants beside its carry."""
        norm = partial(nn.LayerNorm, epsilon=1e-6)
        xavier, tiny = nn.initializers.xavier_uniform(), nn.initializers.normal(1e-6)
        attend = nn.MultiHeadDotProductAttention(self.heads, kernel_init=xavier, name="MultiHeadDotProductAttention_0")
        mlp = Mlp(4, nn.gelu, xavier, tiny, name="MlpBlock_0")  # nn.gelu is the tanh approximation
        if not self.adaln:
            # The raw condition joins every layer as a first token and leaves again after it.
            x = jnp.concatenate([cond[:, None], x], axis=1)  # (b, 1 + s, d)
            x = x + attend(norm()(x))
            x = x + mlp(norm()(x))
            return x[:, 1:], None
        six = nn.Dense(6 * x.shape[-1], kernel_init=nn.initializers.zeros)(cond)[:, None]  # (b, 1, 6 d)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = jnp.split(six, 6, axis=-1)
        x = x + gate_a * attend(norm()(x) * (1 + scale_a) + shift_a)
        x = x + gate_m * mlp(norm()(x) * (1 + scale_m) + shift_m)
        return x, None


class Stack(nn.Module):
    """`depth` layers and a LayerNorm."""

    depth: int
    heads: int
    adaln: bool
    scan: bool
    remat: bool

    @nn.compact
    def __call__(self, x: Array, cond: Array) -> Array:
        """(b, s, d), (b, d) -> (b, s, d)."""
        # Inside a loop XLA cannot undo the rematerialisation, so the barriers against it (prevent_cse) only cost.
        layer: Any = nn.remat(Block, prevent_cse=not self.scan) if self.remat else Block
        if self.scan:
            one = {"in_axes": nn.broadcast, "length": self.depth}  # every layer is given the same condition
            layers: Any = nn.scan(layer, variable_axes={"params": 0}, split_rngs={"params": True}, **one)
            x, _ = layers(self.heads, self.adaln, name=SCAN_NAME)(x, cond)
        else:
            for i in range(self.depth):
                x, _ = layer(self.heads, self.adaln, name=f"{LOOP_NAME}{i}")(x, cond)
        return nn.LayerNorm(epsilon=1e-6, name="encoder_norm")(x)


class AutoEncoder(nn.Module):
    """The one network of every system, without labels."""

    variant: Variant
    patch: int
    adaln: bool
    scan: bool = True
    remat: bool = True

    @nn.compact
    def __call__(self, image: Array, t: Array, u: Array, mask_ratio: float) -> tuple[Array, Array, Array]:
        """From (b, h, w, c) images, (b,) network times (0 = clean) and (b, n) mask draws (unused at ratio 0) to
        (b, h, w, 2 c) predictions of [x0, eps], (b, d) representations and (b, h, w, 1) masks.
        """
        p, d = self.patch, self.variant.width
        b, h, w, c = image.shape
        n, grid = (h // p) * (w // p), (h // p, w // p)
        stack = partial(Stack, heads=self.variant.heads, adaln=self.adaln, scan=self.scan, remat=self.remat)
        position = nn.initializers.normal(stddev=1 / math.sqrt(n))
        cls = self.param("cls", nn.initializers.zeros, (1, 4, d))
        hidden = self.param("image_mask_embedding", nn.initializers.normal(stddev=0.02), (1, 1, d))

        cond = Mlp(2, nn.silu, name="time_trunk")(sinusoid(t, d))  # (b, d)
        cond = nn.silu(cond) if self.adaln else cond
        x = nn.Conv(d, (p, p), strides=(p, p), padding="VALID", name="embedding")(image).reshape(b, n, d)
        x = x + self.param("pos_embedding", position, (1, n, d))

        mask, restore = jnp.zeros((b, n)), None  # ratio 0: every patch, in its own order
        if mask_ratio > 0:
            shuffle = jnp.argsort(u, axis=1)  # (b, n)
            restore = jnp.argsort(shuffle, axis=1)
            visible = int(n * (1 - mask_ratio))
            x = jnp.take_along_axis(x, shuffle[:, :visible, None], axis=1)  # (b, k, d), in the order of the draws
            mask = (restore >= visible).astype(jnp.float32)

        # The class tokens carry no position; their mean is the representation, and all of them that the decoder sees.
        x = jnp.concatenate([jnp.broadcast_to(cls, (b, 4, d)), x], axis=1)
        x = stack(self.variant.encoder_depth, name="Encoder")(x, cond)
        representation, x = x[:, :4].mean(axis=1), x[:, 4:]

        if restore is not None:
            x = jnp.concatenate([x, jnp.broadcast_to(hidden, (b, n - x.shape[1], d))], axis=1)
            x = jnp.take_along_axis(x, restore[..., None], axis=1)  # (b, n, d), in image order
        x = x + self.param("dec_pos_embedding", position, (1, n, d))
        x = jnp.concatenate([representation[:, None], x], axis=1)
        x = stack(self.variant.decoder_depth, name="Decoder")(x, cond)[:, 1:]

        if self.adaln:
            modulation = nn.Dense(2 * d, kernel_init=nn.initializers.zeros, name="final_modulation")(cond)[:, None]
            shift, scale = jnp.split(modulation, 2, axis=-1)
            x = x * (1 + scale) + shift
        small = nn.initializers.normal(0.02)
        head = nn.ConvTranspose(2 * c, (p, p), (p, p), "VALID", kernel_init=small, name="final_conv")
        pixels = jnp.repeat(jnp.repeat(mask.reshape(b, *grid, 1), p, axis=1), p, axis=2)
        return head(x.reshape(b, *grid, d)), representation, pixels


def sinusoid(t: Array, width: int) -> Array:
    """Embedding of integer steps. (b,) -> (b, width), sines first."""
    half = width // 2
    frequency = jnp.exp(-math.log(10000) * jnp.arange(half) / (half - 1))
    angle = t.astype(jnp.float32)[:, None] * frequency[None]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def cosine_abar(steps: int = 1000) -> np.ndarray:
    """(steps,) products of 1 - beta for the cosine schedule, in float64."""
    u = np.arange(steps + 1) / steps
    abar = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.minimum(1 - abar[1:] / abar[:-1], 0.999))


def unified_terms(apply: Callable, system: System, params: Params, inputs: Inputs) -> dict[str, Array]:
    """The scalars of the unified loss: `loss` and its parts, of a `(params, image, t, u, ratio)` network."""
    image = inputs.image
    b, *_, c = image.shape
    b0 = int(b * system.no_noise)
    b1 = b - b0
    terms, total = {}, jnp.zeros(())
    if b1:
        abar, t = cosine_abar(), inputs.t_index[:b1]
        signal, noise = (jnp.asarray(np.sqrt(a), jnp.float32)[t][:, None, None, None] for a in (abar, 1 - abar))
        x0, eps = image[:b1], inputs.eps[:b1]
        # The network's time is one ahead of the diffusion index, since its 0 means a clean image.
        prediction, _, mask = apply(params, signal * x0 + noise * eps, t + 1, inputs.u_noisy[:b1], system.mask_noisy)
        x0_error, eps_error = (prediction[..., :c] - x0) ** 2, (prediction[..., c:] - eps) ** 2
        if system.mask_noisy > 0:  # noise where the patch is visible, clean image where it is hidden
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
    """Which leaves weight decay reaches: all but biases, class tokens and the mask embedding."""
    spared = {"bias", "cls", "image_mask_embedding"}
    return unflatten({name: spared.isdisjoint(name.split("/")) for name in flatten(params)})


def adamw(peak_lr: float, warmup_steps: int, total_steps: int) -> optax.GradientTransformation:
    """The published optimiser: clipped AdamW, its first moment in bfloat16, linear warm-up and cosine to zero."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, peak_lr, warmup_steps, total_steps)
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.adamw(schedule, b1=0.9, b2=0.95, weight_decay=0.05, mu_dtype=jnp.bfloat16, mask=decayed),
    )


def published_optimiser(batch: int, images: int = 1_268_355, epochs: int = 800) -> optax.GradientTransformation:
    """`adamw` over `epochs` of `images`, at 1.5e-4 per 256 images of a batch, warming up for a twentieth of them."""
    return adamw(1.5e-4 * batch / 256, int(0.05 * epochs) * images // batch, round(epochs * images / batch))


class Baseline(NamedTuple):
    """A system of the published setting, ready to be timed."""

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
    """A system by its name ("umd", "mae", "dit", "maskdit") and its variant ("S", "B", "L"), or tables of one's own."""
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
    """Uniform images and exactly the randomness that one step of `system` uses."""
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


# Nested parameters as one dictionary of '/'-joined names, and back.
flatten, unflatten = (partial(f, sep="/") for f in (traverse_util.flatten_dict, traverse_util.unflatten_dict))


def stack_layers(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Flat `Encoder/Encoder1DBlock_<i>/...` as `Encoder/ScanCheckpointEncoder1DBlock_0/...`, depth leading."""
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
    """Undoes `stack_layers`."""
    rest = {name: leaf for name, leaf in flat.items() if SCAN_NAME not in name}
    layers = ((name, i, layer) for name in flat.keys() - rest.keys() for i, layer in enumerate(flat[name]))
    return rest | {name.replace(SCAN_NAME, f"{LOOP_NAME}{i}"): layer for name, i, layer in layers}

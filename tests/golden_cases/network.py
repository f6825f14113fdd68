"""The network on recorded inputs: predictions, intermediates, time embedding, patch head, masks."""

import re
from collections.abc import Iterator
from functools import partial
from typing import Any
from unittest import mock

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from golden_cases.base import Comparison, Folder, GoldenError, Group, Recorded, close, exact
from golden_cases.layout import head_kernel, to_reference
from umd_eqx.core.masking import View, draw_order, hidden_patches, hidden_pixels, num_kept, patchify, unpatchify
from umd_eqx.core.types import AbstractCond
from umd_eqx.models import AutoEncoder, from_reference
from umd_eqx.models.vit.autoencoder import Head
from umd_eqx.models.vit.layers import sinusoid
from umd_eqx.models.vit.packed import Embedded, Packed, Segment

_CASE = re.compile(r"(m\d+)_(\w+)")
_MODIFIERS = frozenset({"uncond", "label", "null", "tnone", "train", "drop"})


def model_of(folder: Folder, kind: str, *, labels: bool) -> AutoEncoder:
    """The recorded parameters of a kind, with its label table or without."""
    params = folder.files[f"params_{kind}"]
    return folder.once(f"model {kind} {labels}", lambda: from_reference(params, labels=labels))


def kinds(folder: Folder) -> list[str]:
    """The kinds of model with recorded parameters; the others are noted as skipped."""
    found = []
    for kind in folder.kinds("model", besides="model_inputs"):
        if folder.has(f"params_{kind}"):
            found.append(kind)
        else:
            folder.skip(f"model_{kind}.npz: no params_{kind}.npz")
    return found


def mask_ratio(mask: str) -> float:
    """Of `m375`, 0.375."""
    return int(mask[1:]) / 10 ** len(mask[1:])


def with_tokens(model: AutoEncoder, x: Any, cond: AbstractCond, view: View | None = None) -> tuple[Any, Any]:
    """(prediction, what comes out of the encoder: class tokens, registers, visible patches) of one image."""
    encoded = []

    def encoder(packed: Packed, c: Embedded, branches: None = None) -> Packed:
        encoded.append(model.encoder(packed, c))
        return encoded[-1]

    prediction = eqx.tree_at(lambda m: m.encoder, model, encoder)(x, cond, view)
    return prediction, encoded[0].tokens[0]


@eqx.filter_jit
def _predict(model: AutoEncoder, images: Any, t: Any, y: Any, order: Any, kept: int | None) -> tuple:
    """(prediction, class tokens' mean, visible patches) of each image; without `kept` all are visible, and left out."""

    def of_image(image, t, y, order):
        view = None if kept is None else View(order, kept)
        cond = model.cond(y).at(t)
        prediction, tokens = with_tokens(model, image, cond, view)
        both = jnp.concatenate([prediction.x0, prediction.eps], axis=-1)
        if view is None:
            return both, model.represent(image, cond).class_tokens, None
        k = model.class_tokens.shape[0]
        return both, jnp.mean(tokens[:k], axis=0), tokens[k:]

    return jax.vmap(of_image)(images, t, y, order)


def _predictor(folder: Folder, kind: str, mask: str):
    """A function of (labels, t, y) on the recorded images, at a recorded mask."""
    inputs = folder.files["model_inputs"]
    images = jnp.asarray(inputs["image"], jnp.float32)
    if mask_ratio(mask) == 0.0:
        order, kept = jnp.zeros((images.shape[0], 1), jnp.int32), None
    else:
        order = jnp.asarray(inputs[f"{mask}/ids_shuffle"], jnp.int32)
        kept = inputs[f"{mask}/ids_keep"].shape[1]

    def predict(labels: bool, t: np.ndarray, y: np.ndarray) -> tuple:
        model = model_of(folder, kind, labels=labels)
        return _predict(model, images, jnp.asarray(t, jnp.float32), jnp.asarray(y, jnp.int32), order, kept)

    return predict


def _outputs(folder: Folder) -> Iterator[Comparison]:
    inputs = folder.files["model_inputs"]
    for kind in kinds(folder):
        recorded = folder.files[f"model_{kind}"]
        for case in dict.fromkeys(key.split("/")[0] for key in recorded):
            match = _CASE.fullmatch(case)
            if match is None:
                if case != "inter" and not re.fullmatch(r"m\d+", case):
                    folder.skip(f"{recorded.name}: unknown case {case}")
                continue
            yield from _case(folder, kind, recorded, case, match[1], match[2].split("_"))
        yield from _intermediates(folder, kind, recorded)
    if "timeemb/t" in inputs:
        out = inputs["timeemb/out"]
        times = jnp.asarray(inputs["timeemb/t"].reshape(-1), jnp.float32)
        yield close("time embedding", _embed_times(times, out.shape[-1]), out)


@eqx.filter_jit
def _embed_times(times: Any, width: int) -> Any:
    return jax.vmap(partial(sinusoid, width=width))(times)


def _case(
    folder: Folder, kind: str, recorded: Recorded, case: str, mask: str, words: list[str]
) -> Iterator[Comparison]:
    inputs = folder.files["model_inputs"]
    guided = [word for word in words if re.fullmatch(r"cfg\w*", word)]
    if unknown := set(words) - _MODIFIERS - set(guided):
        folder.skip(f"{recorded.name}: {case} has an unknown part {', '.join(sorted(unknown))}")
        return
    t = inputs["t"].reshape(-1)
    t = np.zeros_like(t) if "tnone" in words else t
    labels = bool(guided) or bool({"label", "null", "train", "drop"} & set(words))  # "tnone" alone is without
    null = np.full_like(t, model_of(folder, kind, labels=True).num_classes or 0)
    y = null if "null" in words or not labels else inputs["y"].reshape(-1)
    if "drop" in words:
        y = np.where(inputs["drop_ids"].reshape(-1), null, y)
    predict = _predictor(folder, kind, mask)
    prediction, tokens, _ = predict(labels, t, y)
    if guided:
        # The guided predictions are compared elsewhere; the representations are of both halves, conditional first.
        tokens = np.concatenate([tokens, predict(labels, t, null)[1]])
    elif f"{case}/pred" in recorded:
        yield close(f"{kind} {case}/pred", prediction, recorded[f"{case}/pred"])
    if f"{case}/pre_logits" in recorded:
        yield close(f"{kind} {case}/pre_logits", tokens, recorded[f"{case}/pre_logits"])


@eqx.filter_jit
def _parts(model: AutoEncoder, images: Any, t: Any, y: Any) -> tuple:
    """(patch tokens, condition, first encoder block on these tokens alone) of each image."""
    conditioning = model.encoder.conditioning
    block, layer = jax.tree.map(lambda leaf: leaf[0], (model.encoder.blocks, conditioning.layers))
    tokens = jax.vmap(lambda image: model.embed(patchify(image, model.patch)))(images)  # count n d
    c = jax.vmap(lambda t, y: model.condition(model.cond(y).at(t)))(t, y)  # count d
    one_row = tokens.reshape(1, -1, tokens.shape[-1])
    packed = Packed(one_row, jnp.zeros((*one_row.shape[:2], 2)), (Segment(*tokens.shape[:2]),))
    out = conditioning.apply(block, layer, conditioning.prepare(Embedded(c[None])), packed)
    return tokens, c, out.tokens.reshape(tokens.shape)


def _intermediates(folder: Folder, kind: str, recorded: Recorded) -> Iterator[Comparison]:
    inter = recorded.under("inter")
    if not inter:
        return
    inputs, model = folder.files["model_inputs"], model_of(folder, kind, labels=True)
    t, y = inputs["t"].reshape(-1), inputs["y"].reshape(-1)
    images = jnp.asarray(inputs["image"], jnp.float32)
    tokens, c, out = _parts(model, images, jnp.asarray(t, jnp.float32), jnp.asarray(y, jnp.int32))
    adaln = model.head.modulation is not None  # there, what is recorded has been through the SiLU
    ours = {"embed_x": tokens, "cond": jax.nn.silu(c) if adaln else c, "block0_out": out}
    for name, value in inter.items():
        if match := re.fullmatch(r"(m\d+)_(rep|encoded)", name):
            _, mean, patches = _predictor(folder, kind, match[1])(True, t, y)
            if match[2] == "rep" or patches is not None:
                ours[name] = mean if match[2] == "rep" else patches
        if name in ours:
            yield close(f"{kind} inter/{name}", ours[name], value)
        else:
            folder.skip(f"{recorded.name}: unknown intermediate {name}")


def _round_trip(folder: Folder) -> Iterator[Comparison]:
    for kind in folder.kinds("params"):
        recorded = folder.files[f"params_{kind}"]
        ours = to_reference(model_of(folder, kind, labels=True))
        if extra := set(ours) ^ set(recorded):
            raise GoldenError(f"{recorded.name}: parameters of one side alone: {', '.join(sorted(extra))}")
        for name, value in recorded.items():
            yield exact(f"{kind} {name}", ours[name], value)


def _patch_head(folder: Folder) -> Iterator[Comparison]:
    recorded = folder.files["conv_transpose"]
    x, kernel, out = recorded["x"], recorded["kernel"], recorded["out"]
    head = Head(None, jnp.asarray(head_kernel(kernel)), jnp.asarray(recorded["bias"]))
    yield close("un-patchify", _to_pixels(head, jnp.asarray(x), kernel.shape[0]), out)


@eqx.filter_jit
def _to_pixels(head: Head, tokens: Any, patch: int) -> Any:
    """Images, from grids of tokens (image, row, column, d)."""
    count, rows, columns, width = tokens.shape
    one_row = tokens.reshape(1, -1, width)
    packed = Packed(one_row, jnp.zeros((*one_row.shape[:2], 2)), (Segment(count, one_row.shape[1] // count),))
    values = head(packed, Embedded(jnp.zeros((1, count, 1)))).reshape(1, count, -1, head.kernel.shape[1])
    return jax.vmap(partial(unpatchify, patch=patch, height=rows * patch, width=columns * patch))(values[0])


def _masks(folder: Folder) -> Iterator[Comparison]:
    inputs = folder.files["model_inputs"]
    for mask in sorted({key.split("/")[0] for key in inputs if re.fullmatch(r"m\d+/.*", key)}):
        given = inputs.under(mask)
        noise, keep = inputs[f"{mask}/noise"], inputs[f"{mask}/ids_keep"]
        order = np.stack([_order_from(row) for row in noise])
        n, kept = order.shape[1], num_kept(order.shape[1], mask_ratio(mask))
        yield exact(f"{mask} kept", np.asarray(kept), np.asarray(keep.shape[1]))
        yield exact(f"{mask}/ids_keep", order[:, :kept], keep)
        ours = {"ids_shuffle": order, "ids_restore": np.argsort(order, axis=1)}
        ours["seq_mask"] = np.stack([hidden_patches(View(jnp.asarray(row), kept)) for row in order])
        yield from (exact(f"{mask}/{name}", ours[name], given[name]) for name in ours if name in given)
        for kind in kinds(folder):
            recorded = folder.files[f"model_{kind}"]
            if f"{mask}/mask" in recorded:
                pixels, image = recorded[f"{mask}/mask"], inputs["image"]
                patch = round((image.shape[1] * image.shape[2] / n) ** 0.5)
                like = jnp.asarray(image[0])
                masks = [hidden_pixels(View(jnp.asarray(row), kept), like, patch) for row in order]
                yield exact(f"{kind} {mask}/mask", np.stack(masks), pixels)


def _order_from(noise: np.ndarray) -> np.ndarray:
    # Our own draw, with the recorded uniform numbers for its luck.
    with mock.patch.object(jax.random, "uniform", return_value=jnp.asarray(noise)):
        return np.asarray(draw_order(jax.random.key(0), noise.shape[0]))


GROUPS = (
    Group("model outputs", ("model_*", "model_inputs", "params_*"), 5e-5, _outputs),
    Group("parameters there and back", ("params_*",), 0.0, _round_trip),
    Group("patch head", ("conv_transpose",), 1e-5, _patch_head),
    Group("mask order, kept ids, masks", ("model_inputs",), 0.0, _masks),
)

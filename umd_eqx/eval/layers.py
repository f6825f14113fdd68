"""Where the representation lives: the accuracy of a few-shot probe at each layer and noise level of a network."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray

from umd_eqx.core.errors import BadInput
from umd_eqx.core.paths import AbstractPath
from umd_eqx.core.processes import to_host
from umd_eqx.core.sharding import chunked_vmap
from umd_eqx.core.types import FeatureKind, Image, Representation
from umd_eqx.eval.base import EvalContext, batch_rows, image_keys
from umd_eqx.eval.features import represent_batch
from umd_eqx.eval.fewshot import FewShot
from umd_eqx.eval.probes import ridge_accuracies
from umd_eqx.models import AbstractLayeredModel, AbstractPatchModel


class LayerFeatures(NamedTuple):
    """The features of some layers, labels and indices, one row per image. Unreadable images are left out."""

    features: tuple[Float[np.ndarray, "n _"], ...]
    labels: Int[np.ndarray, "n"]
    indices: Int[np.ndarray, "n"]


class LayerMap(NamedTuple):
    """Top-1 test accuracies in percent: mean and standard deviation (with n - 1) over the draws of training images.

    `spread` is None for a single draw.
    `layers` are the names of the layers, `levels` the noise levels: times of the path, from 0 (clean) to 1 (noise).
    """

    layers: tuple[str, ...]
    levels: tuple[float, ...]
    mean: Float[np.ndarray, "layers levels"]
    spread: Float[np.ndarray, "layers levels"] | None


def require_layers(model: Any, field: str) -> AbstractLayeredModel:
    """Returns the network if it is an `AbstractLayeredModel`, and raises `BadInput` naming `field` otherwise."""
    if not isinstance(model, AbstractLayeredModel):
        problem = f"{type(model).__name__} does not represent images after each of its layers"
        raise BadInput(field, problem, "Choose another network, or make this one an AbstractLayeredModel")
    return model


def chosen_layers(model: AbstractLayeredModel, numbers: Sequence[int], field: str) -> tuple[int, ...]:
    """Returns the numbers of layers in ascending order and once each, or those of all layers if none is given.

    Raises `BadInput` naming `field` for a number that is not that of a layer.
    """
    for number in numbers:
        if not 1 <= number <= len(model.layers):
            names = f"1 ({model.layers[0]}) .. {len(model.layers)} ({model.layers[-1]})"
            raise BadInput(field, f"{number} is not the number of a layer", f"Use {names}")
    return tuple(sorted(set(numbers))) or tuple(range(1, 1 + len(model.layers)))


def feature_batches(
    model: AbstractPatchModel,
    context: EvalContext,
    split: Literal["train", "test"],
    indices: Int[np.ndarray, "n"],
    layers: tuple[int, ...] | None,
    kind: FeatureKind,
    time: float,
    key: PRNGKeyArray,
) -> Iterator[LayerFeatures]:
    """Yields the features of some layers, from one pass through the network, or of its representation.

    **Arguments:** as for `umd_eqx.eval.features.extract`, and

    - `layers`: the numbers of layers of an `AbstractLayeredModel`. None: the representation of the network, which needs
        no layers.
    - `kind`: the kind of features.

    **Yields:** the features of each batch: of every layer, or only of the representation.

    **Raises:** as `extract` does.
    """
    t, factor = jnp.asarray(time), context.tokenizer_or_identity.factor
    batches = context.batches(split, indices, crop="fewshot")
    for batch, rows in zip(batches, batch_rows(indices, context.batch_size), strict=True):
        given = (jnp.asarray(batch.image), t, image_keys(key, rows))
        if layers is None:
            found = (represent_batch(model, context.path, *given, context.mesh, factor),)
        else:
            chosen = require_layers(model, "eval")
            found = represent_layers_batch(chosen, context.path, *given, layers, context.mesh, factor)
        valid = to_host(batch.valid)
        features = tuple(_of_kind(one, kind)[valid] for one in found)
        yield LayerFeatures(features, to_host(batch.label)[valid], rows[valid])


def _of_kind(found: Representation, kind: FeatureKind) -> Float[np.ndarray, "b features"]:
    parts = {"class_tokens": [found.class_tokens], "patches": [found.patches]}
    columns = parts.get(kind, [found.class_tokens, found.patches])
    return np.concatenate(to_host(columns), axis=1)


@eqx.filter_jit
def represent_layers_batch(
    model: AbstractLayeredModel,
    path: AbstractPath,
    images: Float[Array, "b h w c"],
    t: Float[Array, ""],
    keys: Key[Array, "b"],
    layers: tuple[int, ...],
    mesh: jax.sharding.Mesh,
    factor: int,
) -> tuple[Representation, ...]:
    """Returns the representations of some layers, each as `represent_batch` returns that of the network."""

    def one(x0: Image, key: Key[Array, ""]) -> tuple[Representation, ...]:
        x_t = path.interpolate(x0, jax.random.normal(key, x0.shape), t)
        found = model.represent_layers(x_t, model.cond().at(path.network_time(t)))
        return tuple(found[number - 1] for number in layers)

    return chunked_vmap(lambda given: one(*given), (images, keys), mesh, factor=factor)


class DrawnImages(NamedTuple):
    """The images of a few-shot probe: the training images of each draw, all of them, and the test images."""

    draws: tuple[Int[np.ndarray, "_"], ...]
    train: Int[np.ndarray, "n"]
    test: Int[np.ndarray, "m"]


def draw_images(probe: FewShot, context: EvalContext) -> DrawnImages:
    """Returns the indices of the images that a probe uses. Reads the label of each image of its pool."""
    draws = tuple(probe.draw(context, (probe.shots,))[probe.shots])
    return DrawnImages(draws, np.unique(np.concatenate(draws)), probe.test_indices(context))


def layer_map(
    model: AbstractLayeredModel,
    context: EvalContext,
    drawn: DrawnImages,
    layers: tuple[int, ...],
    levels: Sequence[float],
    key: PRNGKeyArray,
    *,
    kind: FeatureKind = "class_tokens",
    l2: float | None = 1024.0,
    progress: Callable[[int], None] = lambda _: None,
) -> LayerMap:
    """Fits few-shot ridge probes to the features of each layer at each noise level.

    All layers are represented in one pass. The features of all chosen layers at one level are held in memory: 4 bytes
    for each image, layer and feature.

    **Arguments:**

    - `model`: the network.
    - `context`: the data.
    - `drawn`: the images.
    - `layers`: the numbers of the layers, as from `chosen_layers`.
    - `levels`: the noise levels of training and test images, times of the path.
    - `key`: the key of the noise. With the key, the level, `kind` and `l2` of a `FewShot` evaluation, the mean accuracy
        of the layer `represented_layer` is the `top1` of that evaluation, as far as the compiler rounds the features
        alike.
    - `kind`: the kind of features.
    - `l2`: the ridge penalty. None: chosen for each probe as by `FewShot`.
    - `progress`: called after each batch with the number of images that were represented, up to the number of levels
        times that of all images.

    **Raises:** as `umd_eqx.eval.features.extract` does.
    """

    def features(
        split: Literal["train", "test"], indices: Int[np.ndarray, "n"], level: float, done: int
    ) -> LayerFeatures:
        parts = []
        for part in feature_batches(model, context, split, indices, layers, kind, level, key):
            parts.append(part)
            progress(done + min(len(parts) * context.batch_size, len(indices)))
        return _joined(parts)

    each, columns = len(drawn.train) + len(drawn.test), []
    for number, level in enumerate(levels):
        train = features("train", drawn.train, level, number * each)
        test = features("test", drawn.test, level, number * each + len(drawn.train))
        context.phase("fitting probes")
        rows = [np.flatnonzero(np.isin(train.indices, draw)) for draw in drawn.draws]
        classes = context.train.spec.num_classes
        given = (test.labels, rows, classes, l2)
        pairs = zip(train.features, test.features, strict=True)
        columns.append([ridge_accuracies(ours, train.labels, theirs, *given)[0] for ours, theirs in pairs])
    accuracies = np.asarray(columns).swapaxes(0, 1)  # layers, levels, draws
    names = tuple(model.layers[number - 1] for number in layers)
    spread = accuracies.std(axis=2, ddof=1) if len(drawn.draws) > 1 else None
    return LayerMap(names, tuple(levels), accuracies.mean(axis=2), spread)


def _joined(parts: Sequence[LayerFeatures]) -> LayerFeatures:
    features = tuple(np.concatenate(layer) for layer in zip(*(part.features for part in parts), strict=True))
    return LayerFeatures(
        features, *(np.concatenate(column) for column in zip(*(part[1:] for part in parts), strict=True))
    )

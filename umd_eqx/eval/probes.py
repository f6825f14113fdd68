"""Linear probe by ridge regression, and k-nearest neighbours, on features (as in the reference, big_vision's probe)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

ROWS = 1024
"""Number of test images that are whitened, or compared with all training images, at once. With 100,000 training images
this takes 1.2 GB; all 50,000 test images of ImageNet at once would take 60 GB."""

BIAS_FEATURE = 100.0
"""The constant feature. It is large, which makes the effect of the ridge penalty on the bias negligible."""

STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-4, 9))
"""The candidate ridge penalties, 0.01 to 10,000, if `FewShot.l2` is None."""

Labels = Int[np.ndarray, "n"]


class RidgeProbe(NamedTuple):
    """A linear classifier of whitened features. The last row of `weights` is that of the constant feature."""

    mean: Float[np.ndarray, "d"]
    std: Float[np.ndarray, "d"]
    weights: Float[np.ndarray, "d_plus_1 classes"]

    def predict(self, features: Float[np.ndarray, "n d"]) -> Int[np.ndarray, "n"]:
        """Returns the class with the largest score for each row."""
        parts = (features[start : start + ROWS] for start in range(0, len(features), ROWS))
        scores = [_whitened(part, self.mean, self.std) @ self.weights for part in parts]
        return np.argmax(np.concatenate(scores), axis=1)


def draw_shots(labels: Labels, shots: int, seed: int) -> Int[np.ndarray, "drawn"]:
    """Returns the indices of up to `shots` random examples of each class, with the classes in order.

    All examples are taken of a class with fewer, as in the reference.
    """
    rng = np.random.default_rng(seed)
    classes = range(int(labels.max()) + 1)
    return np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:shots] for c in classes])


def ridge_probe(features: Float[np.ndarray, "n d"], labels: Labels, num_classes: int, l2: float = 1024.0) -> RidgeProbe:
    """Fits ridge regression to targets +-1, in closed form and float64: W = (X'X + l2 I)^-1 X'Y.

    X is whitened by its own mean and standard deviation (+ 1e-5), with a constant feature of 100 appended. With fewer
    examples than features, the same solution is computed from X X'.
    """
    mean, std = _moments(features)
    x, y = _whitened(features, mean, std), _targets(labels, num_classes)
    if x.shape[0] < x.shape[1]:
        weights = x.T @ np.linalg.solve(x @ x.T + l2 * np.eye(x.shape[0]), y)
    else:
        weights = np.linalg.solve(x.T @ x + l2 * np.eye(x.shape[1]), x.T @ y)
    return RidgeProbe(mean, std, weights)


def leave_one_out(
    features: Float[np.ndarray, "n d"], labels: Labels, num_classes: int, l2: float
) -> Float[np.ndarray, "n classes"]:
    """Returns the leave-one-out scores of `ridge_probe` for every image, from a single fit.

    y - y_without = (y - y_fitted) / (1 - h), where h is the diagonal of X (X'X + l2 I)^-1 X' (Allen 1974, PRESS). The
    whitening is that of all images.
    """
    return _leave_one_out(*_spectrum(features), _targets(labels, num_classes), l2)


def choose_l2(features: Float[np.ndarray, "n d"], labels: Labels, num_classes: int) -> float:
    """Returns the penalty in `STRENGTHS` with the best leave-one-out accuracy, the largest one in case of ties."""
    projections, squares = _spectrum(features)
    targets = _targets(labels, num_classes)

    def correct(l2: float) -> tuple[int, float]:
        scores = _leave_one_out(projections, squares, targets, l2)
        return int(np.sum(scores.argmax(axis=1) == labels)), l2

    return max(STRENGTHS, key=correct)


def ridge_accuracies(
    train: Float[np.ndarray, "n d"],
    train_labels: Labels,
    test: Float[np.ndarray, "m d"],
    test_labels: Int[np.ndarray, "m"],
    draws: Sequence[Int[np.ndarray, "_"]],
    num_classes: int,
    l2: float | None,
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Returns the test accuracy in percent, and the penalty, of the ridge probe of each draw, given as rows of `train`.

    `l2` is the penalty of all of them. None: chosen for each (`choose_l2`).
    """
    accuracies, penalties = [], []
    for rows in draws:
        features, labels = train[rows], train_labels[rows]
        penalty = choose_l2(features, labels, num_classes) if l2 is None else l2
        predicted = ridge_probe(features, labels, num_classes, penalty).predict(test)
        accuracies.append(100.0 * float(np.mean(predicted == test_labels)))
        penalties.append(penalty)
    return tuple(accuracies), tuple(penalties)


def nearest_neighbours(
    train: Float[np.ndarray, "n d"], labels: Labels, test: Float[np.ndarray, "m d"], k: int, *, rows: int = ROWS
) -> Int[np.ndarray, "m"]:
    """Returns the majority class among the k training features with the largest cosine similarity.

    Ties go to the lowest class. `rows` test features are compared with all n at once, which affects memory only.
    """

    def unit(x: np.ndarray) -> np.ndarray:
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    against = -unit(train).T  # the nearest come first
    predicted = np.empty(len(test), np.int64)
    for start in range(0, len(test), rows):
        some = slice(start, start + rows)
        nearest = labels[np.argpartition(unit(test[some]) @ against, min(k, len(labels)) - 1, axis=1)[:, :k]]
        predicted[some] = [np.bincount(votes).argmax() for votes in nearest]
    return predicted


def _whitened(features: Float[np.ndarray, "n d"], mean: np.ndarray, std: np.ndarray) -> Float[np.ndarray, "n d_plus_1"]:
    x = np.empty((len(features), features.shape[1] + 1))  # in place: there may be gigabytes of them
    np.subtract(features, mean, out=x[:, :-1])
    x[:, :-1] /= std
    x[:, -1] = BIAS_FEATURE
    return x


def _moments(features: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "d"], Float[np.ndarray, "d"]]:
    return features.mean(axis=0, dtype=np.float64), features.std(axis=0, dtype=np.float64) + 1e-5


def _targets(labels: Labels, num_classes: int) -> Float[np.ndarray, "n classes"]:
    return 2.0 * np.eye(num_classes)[labels] - 1.0


def _spectrum(features: Float[np.ndarray, "n d"]) -> tuple[Float[np.ndarray, "n rank"], Float[np.ndarray, "rank"]]:
    # Projections of the images on the principal directions of the whitened features, and the squared singular values.
    x = _whitened(features, *_moments(features))
    if x.shape[0] < x.shape[1]:
        squares, left = np.linalg.eigh(x @ x.T)
        squares = np.maximum(squares, 0.0)
        return left * np.sqrt(squares), squares
    squares, right = np.linalg.eigh(x.T @ x)
    return x @ right, np.maximum(squares, 0.0)


def _leave_one_out(
    projections: Float[np.ndarray, "n rank"],
    squares: Float[np.ndarray, "rank"],
    y: Float[np.ndarray, "n classes"],
    l2: float,
) -> Float[np.ndarray, "n classes"]:
    weighted = projections / (squares + l2)
    fitted = weighted @ (projections.T @ y)
    leverage = np.einsum("nr,nr->n", weighted, projections)[:, None]
    return y - (y - fitted) / (1.0 - leverage)

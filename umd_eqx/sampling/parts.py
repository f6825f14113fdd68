"""Sampling in parts that are kept on disk, so that an interrupted sampling of many images continues where it was."""

import contextlib
import io
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int, PRNGKeyArray

from umd_eqx.core.files import write_atomically
from umd_eqx.core.sharding import round_up_to_devices
from umd_eqx.sampling.base import AbstractSampler
from umd_eqx.sampling.batch import sample
from umd_eqx.sampling.denoisers import AbstractDenoiser

PART = 1024
"""The number of images in a part, rounded up to a multiple of the batch size."""


def sample_in_parts(
    denoiser: AbstractDenoiser,
    sampler: AbstractSampler,
    labels: Int[np.ndarray, "n"],
    key: PRNGKeyArray,
    *,
    batch_size: int,
    mesh: Mesh,
    folder: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    part: int = PART,
) -> Float[np.ndarray, "n h w c"]:
    """Samples an image for each label, as `sample` does, and keeps each finished part but the last in a file.

    Parts that are already there are not sampled again. If a part cannot be written, sampling goes on without it.

    **Arguments:**

    - `denoiser`, `sampler`, `labels`, `key`, `batch_size`, `mesh`, `progress`: as for `sample`.
    - `folder`: the folder of the parts, which must belong to these arguments alone; `remove_parts` deletes it. None:
        nothing is kept.
    - `part`: the number of images in a part.
    """
    step = round_up_to_devices(batch_size, mesh)
    step *= -(-part // step)
    images = []
    for start in range(0, len(labels), step):
        some = labels[start : start + step]
        path = None if folder is None or start + step >= len(labels) else folder / f"{start:08}.npy"
        found = None if path is None else _read(path, (len(some), *denoiser.model.image_shape))
        if found is None:
            done = None if progress is None else _from(progress, start, len(labels))
            found = sample(
                *(denoiser, sampler, some, key), batch_size=batch_size, mesh=mesh, progress=done, first=start
            )
            if path is not None:
                _write(path, found)
        elif progress is not None:
            progress(start + len(some), len(labels))
        images.append(found)
    return np.concatenate(images) if images else sample(denoiser, sampler, labels, key, mesh=mesh)


def remove_parts(folder: Path | None) -> None:
    """Deletes the folder of the parts, if there is one."""
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _from(progress: Callable[[int, int], None], start: int, total: int) -> Callable[[int, int], None]:
    return lambda done, _: progress(start + done, total)


def _read(path: Path, shape: tuple[int, ...]) -> Float[np.ndarray, "n h w c"] | None:
    try:
        found = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return None
    fine = isinstance(found, np.ndarray) and found.shape == shape and found.dtype == np.float32
    return found if fine else None


def _write(path: Path, images: Float[np.ndarray, "n h w c"]) -> None:
    content = io.BytesIO()
    np.save(content, images, allow_pickle=False)
    with contextlib.suppress(OSError):  # such as a full disk: parts are only kept for the case of an interruption
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.getvalue())

"""The published weights of Inception-v3: their search path, their verification and their conversion.

Every FID computed with PyTorch uses the same file: TensorFlow's graph of 2015-12-05, ported by pytorch-fid and copied
byte for byte by torch-fidelity. It is a pickle. `experiments/convert_inception.py` converts it once to a safetensors
file, the only format that is read here. Such a file is not hosted anywhere yet, and nothing is downloaded unless
requested.
"""

import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import write_atomically
from umd_eqx.core.hashes import sha256_of
from umd_eqx.core.tensors import read_tensors
from umd_eqx.models.extractors.inception import InceptionV3, Port
from umd_eqx.models.extractors.inception_table import convolutions, parameter_shapes

ENVIRONMENT_VARIABLE = "UMD_EQX_INCEPTION"
"""The environment variable with the path of a converted file."""
CACHE_FILE = "inception-2015-12-05.safetensors"
"""The name of a converted file in the cache."""
CONVERT_COMMAND = "python experiments/convert_inception.py --download"


class Published(NamedTuple):
    """A published file: its URL, its SHA-256 and its size in bytes."""

    url: str
    sha256: str
    size: int


PUBLISHED = Published(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)
"""The file name contains the first eight digits of the SHA-256; independent projects pin the full hash."""

_PORTED = {"scale": "bn.weight", "bias": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def cache_folder() -> Path:
    """Returns the cache folder of this package, under $XDG_CACHE_HOME or else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umd_eqx"


def find_inception(path: str | None = None, port: Port = "pytorch") -> InceptionV3 | None:
    """Returns the network with the published weights, or None if they are not found; see `missing_inception`.

    The weights are looked up at `path`, else at $UMD_EQX_INCEPTION, else in the cache. Raises
    `BadInput` for a file that was named and cannot be used, and for a damaged file in the cache.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE)
    if path is not None:
        return load_inception(path, port=port)
    if named:
        return load_inception(named, f"${ENVIRONMENT_VARIABLE}", port)
    kept = cache_folder() / CACHE_FILE
    return load_inception(kept, str(kept), port) if kept.is_file() else None


def missing_inception() -> str:
    """Returns a one-line hint for missing weights, without a full stop."""
    return (
        f"For FID, run `{CONVERT_COMMAND}` once (96 MB, needs torch) "
        f"or give a converted file with `inception_weights` or ${ENVIRONMENT_VARIABLE}"
    )


def load_inception(
    path: str | os.PathLike[str], field: str = "inception_weights", port: Port = "pytorch"
) -> InceptionV3:
    """Loads the network from a converted file.

    **Arguments:**

    - `path`: a file written by `experiments/convert_inception.py`.
    - `field`: the field that named it.
    - `port`: the preprocessing and the definition of the logits; see `Port`.

    **Raises:** `BadInput` as `read_tensors` does; for the first array that is missing, of another shape, not float32 or
    not finite; and for a header that does not name the published file as its source, since distances in the features of
    other weights are not FID.
    """
    tensors, texts = read_tensors(path, field)
    hint = f"Convert the published file: {CONVERT_COMMAND}"
    for name, shape in parameter_shapes().items():
        if name not in tensors:
            raise BadInput(field, f"{path} lacks {name}", hint)
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            problem = f"{name} in {path} is {tensor.dtype} {tensor.shape}, not float32 {shape}"
            raise BadInput(field, problem, hint)
        if not np.isfinite(tensor).all():
            raise BadInput(field, f"{name} in {path} holds values that are not finite", hint)
    if texts.get("source_sha256") != PUBLISHED.sha256:
        raise BadInput(field, f"{path} was not converted from the published weights", hint)
    return InceptionV3.from_tensors(tensors, port)


def convert_inception(state: Mapping[str, np.ndarray], field: str = "SOURCE") -> dict[str, np.ndarray]:
    """Converts a PyTorch state dict to arrays with the names and shapes of `parameter_shapes`, in float32.

    Kernels (outputs, inputs, rows, columns) become (rows, columns, inputs, outputs). Raises `BadInput` naming the first
    array that is missing, of another shape, or unexpected.
    """
    hint = "Use the unchanged file of pytorch-fid or torch-fidelity"
    sources = {f"{name}.kernel": (f"{name}.conv.weight", (2, 3, 1, 0)) for name, *_ in convolutions()}
    for name, *_ in convolutions():
        sources |= {f"{name}.{ours}": (f"{name}.{theirs}", (0,)) for ours, theirs in _PORTED.items()}
    sources |= {"fc.kernel": ("fc.weight", (1, 0)), "fc.bias": ("fc.bias", (0,))}
    for name in sorted(set(state) - {theirs for theirs, _ in sources.values()}):
        if not name.endswith(".num_batches_tracked"):  # a counter that only training uses
            raise BadInput(field, f"{name!r} is not part of the network", hint)
    tensors = {}
    for ours, shape in parameter_shapes().items():
        theirs, order = sources[ours]
        if theirs not in state:
            raise BadInput(field, f"{theirs} is missing", hint)
        tensor = np.asarray(state[theirs], np.float32)
        if tensor.ndim != len(order) or tensor.transpose(order).shape != shape:
            raise BadInput(field, f"{theirs} has shape {tensor.shape}, which does not fit", hint)
        tensors[ours] = tensor.transpose(order)
    return tensors


def read_published(path: str | os.PathLike[str], published: Published = PUBLISHED, field: str = "SOURCE") -> bytes:
    """Returns the bytes of a published file after verifying its SHA-256. Raises `BadInput` for any other file."""
    hint = f"Use the published file, {published.url}"
    try:
        if not os.path.isfile(path):
            raise BadInput(field, f"there is no file {path}", "Give the path of the file, or use `download`")
        if os.path.getsize(path) != published.size:
            problem = f"{path} has {os.path.getsize(path):,} bytes, not {published.size:,}"
            raise BadInput(field, problem, hint)
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(field, f"{path} cannot be read ({error.strerror or error})", hint) from error
    if sha256_of(data) != published.sha256:
        raise BadInput(field, f"the SHA-256 of {path} is not that of the published file; it was not unpickled", hint)
    return data


def fetch_published(path: str | os.PathLike[str], published: Published = PUBLISHED, field: str = "download") -> None:
    """Downloads a published file to `path`, atomically and only if its SHA-256 is correct.

    Raises `BadInput` if it cannot be downloaded, has another SHA-256 or cannot be written.
    """
    path = Path(path)
    hint = f"Download {published.url} by other means and give the path of the file"
    try:
        with urllib.request.urlopen(published.url, timeout=60) as answer:
            data = answer.read(published.size + 1)
    except (OSError, ValueError) as error:  # an unreachable or invalid URL
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
        raise BadInput(field, f"{published.url} cannot be downloaded ({reason})", hint) from error
    if sha256_of(data) != published.sha256:
        raise BadInput(field, f"the file received from {published.url} has another SHA-256", hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        problem = f"{path} cannot be written ({error.strerror or error})"
        raise BadInput("SOURCE", problem, "Choose another path") from error

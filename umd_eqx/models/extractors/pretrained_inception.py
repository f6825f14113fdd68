"""The published weights of Inception-v3: where they are looked for, what they must hold, how they were made.

One file is behind every FID computed with PyTorch: TensorFlow's graph of 2015-12-05, ported by pytorch-fid and taken
over by torch-fidelity byte for byte. It is a pickle. `experiments/convert_inception.py` makes a safetensors file of it
once, and that is all that is ever read here. Nobody hosts such a file yet, so that nothing is fetched unasked.
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

VARIABLE = "UMD_EQX_INCEPTION"
"""Of the environment: a converted file."""
FILE = "inception-2015-12-05.safetensors"
"""What a converted file is called in the cache."""
CONVERT = "python experiments/convert_inception.py --download"


class Published(NamedTuple):
    """A file that others publish: its address, its SHA-256 and how many bytes it has."""

    url: str
    sha256: str
    size: int


PUBLISHED = Published(
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth",
    "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
    95_628_359,
)
"""The file's name carries the first eight digits; the whole sum is the one that independent projects pin."""

_PORTED = {"scale": "bn.weight", "bias": "bn.bias", "mean": "bn.running_mean", "var": "bn.running_var"}


def cache_folder() -> Path:
    """Where this package keeps what is made once for a user: under $XDG_CACHE_HOME, else ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umd_eqx"


def find_inception(path: str | None = None, port: Port = "pytorch") -> InceptionV3 | None:
    """The network with the published weights, or None where there are none: `missing_inception` says what to do then.

    Looks at `path` (--inception-weights), else at $UMD_EQX_INCEPTION, else into the cache. Raises `BadInput` for a file
    that was named and cannot be used, and for a damaged one in the cache.
    """
    named = os.environ.get(VARIABLE)
    if path is not None:
        return load_inception(path, port=port)
    if named:
        return load_inception(named, f"${VARIABLE}", port)
    kept = cache_folder() / FILE
    return load_inception(kept, str(kept), port) if kept.is_file() else None


def missing_inception() -> str:
    """What to do where there are no weights, in one line, without a full stop."""
    return (
        f"For FID, run `{CONVERT}` once (96 MB, needs torch) "
        f"or give a converted file with --inception-weights or ${VARIABLE}"
    )


def load_inception(
    path: str | os.PathLike[str], field: str = "--inception-weights", port: Port = "pytorch"
) -> InceptionV3:
    """The network with the arrays of a converted file.

    **Arguments:**

    - `path`: what `experiments/convert_inception.py` wrote.
    - `field`: the flag that named it.
    - `port`: how images are brought to the network; see `Port`.

    **Raises:** `BadInput` for what `read_tensors` refuses; for the first array that is missing, or is of another shape,
    not float32 or not finite; and for a header that does not name the published file as its source: a distance in the
    features of other weights is no FID.
    """
    tensors, texts = read_tensors(path, field)
    hint = f"Convert the published file: {CONVERT}"
    for name, shape in parameter_shapes().items():
        if name not in tensors:
            raise BadInput(field, f"{path} lacks {name}", hint)
        tensor = tensors[name]
        if tensor.shape != shape or tensor.dtype != np.float32:
            problem = f"{name} in {path} is {tensor.dtype} {tensor.shape}, not float32 {shape}"
            raise BadInput(field, problem, hint)
        if not np.isfinite(tensor).all():
            raise BadInput(field, f"{name} in {path} holds numbers that are not finite", hint)
    if texts.get("source_sha256") != PUBLISHED.sha256:
        raise BadInput(field, f"{path} was not made of the published weights", hint)
    return InceptionV3.from_tensors(tensors, port)


def convert_inception(state: Mapping[str, np.ndarray], field: str = "SOURCE") -> dict[str, np.ndarray]:
    """The arrays of a PyTorch state dict by the names and shapes of `parameter_shapes`, in float32.

    Kernels (outputs, inputs, rows, columns) become (rows, columns, inputs, outputs). Raises `BadInput` naming the first
    array that is missing, of another shape, or has no place.
    """
    hint = "Take the file of pytorch-fid or torch-fidelity, unchanged"
    sources = {f"{name}.kernel": (f"{name}.conv.weight", (2, 3, 1, 0)) for name, *_ in convolutions()}
    for name, *_ in convolutions():
        sources |= {f"{name}.{ours}": (f"{name}.{theirs}", (0,)) for ours, theirs in _PORTED.items()}
    sources |= {"fc.kernel": ("fc.weight", (1, 0)), "fc.bias": ("fc.bias", (0,))}
    for name in sorted(set(state) - {theirs for theirs, _ in sources.values()}):
        if not name.endswith(".num_batches_tracked"):  # counts the batches of a training that is over
            raise BadInput(field, f"{name!r} has no place in the network", hint)
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
    """The bytes of a published file, once its SHA-256 is right. Raises `BadInput` for any other file."""
    hint = f"Take the published one, {published.url}"
    try:
        if not os.path.isfile(path):
            raise BadInput(field, f"there is no file {path}", "Name it, or let --download fetch it")
        if os.path.getsize(path) != published.size:
            problem = f"{path} has {os.path.getsize(path):,} bytes, not {published.size:,}"
            raise BadInput(field, problem, hint)
        data = Path(path).read_bytes()
    except OSError as error:
        raise BadInput(field, f"{path} cannot be read ({error.strerror or error})", hint) from error
    if sha256_of(data) != published.sha256:
        raise BadInput(field, f"{path} has another SHA-256 than the published file; it was not opened", hint)
    return data


def fetch_published(path: str | os.PathLike[str], published: Published = PUBLISHED, field: str = "--download") -> None:
    """Fetches a published file to `path`; it is there whole and with the right SHA-256, or not at all.

    Raises `BadInput` where there is no network, where something else comes, and where it cannot be written.
    """
    path = Path(path)
    hint = f"Fetch {published.url} by other means and name the file"
    try:
        with urllib.request.urlopen(published.url, timeout=60) as answer:
            data = answer.read(published.size + 1)
    except (OSError, ValueError) as error:  # an address that cannot be reached, one that is none
        reason = " ".join(str(getattr(error, "reason", error)).split())[:120]
        raise BadInput(field, f"{published.url} cannot be fetched ({reason})", hint) from error
    if sha256_of(data) != published.sha256:
        raise BadInput(field, f"what {published.url} sent has another SHA-256", hint)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, data)
    except OSError as error:
        raise BadInput("SOURCE", f"{path} cannot be written ({error.strerror or error})", "Name another") from error

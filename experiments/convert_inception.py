"""Convert the published Inception-v3 weights, once: `python experiments/convert_inception.py --download`.

Or of a file that you have: `python experiments/convert_inception.py SOURCE.pth OUT.safetensors`.
"""

import io
from pathlib import Path
from typing import Annotated, Any

from umd_eqx.training.signals import interruptible_imports

with interruptible_imports():
    import tyro

    from umd_eqx.commands.cli import exit_with
    from umd_eqx.core.errors import BadInput
    from umd_eqx.core.tensors import write_tensors
    from umd_eqx.models.extractors.pretrained_inception import (
        FILE,
        PUBLISHED,
        Published,
        cache_folder,
        convert_inception,
        fetch_published,
        read_published,
    )


def convert(
    source: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[SOURCE]")] = None,
    out: Annotated[tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[OUT]")] = None,
    *,
    download: tyro.conf.FlagCreatePairsOff[bool] = False,
    published: tyro.conf.Suppress[Published] = PUBLISHED,
) -> int:
    """Makes a safetensors file of the published Inception-v3 weights (pytorch-fid's and torch-fidelity's one file).

    The file is a pickle: it is opened only if its SHA-256 is the published one, and then with `weights_only`.

    Args:
        source: The published .pth file. By default it is in the cache folder.
        out: The .safetensors file to write. By default it is in the cache folder, where evaluations find it.
        download: Fetch SOURCE first, if it is not there (96 MB).
        published: What SOURCE must be.
    """
    source = source or cache_folder() / Path(published.url).name
    out = out or cache_folder() / FILE
    if download and not source.exists():
        import_torch()  # before 96 MB are fetched for nothing
        print(f"fetching {published.url}")
        fetch_published(source, published)
    data = read_published(source, published)
    state = import_torch().load(io.BytesIO(data), map_location="cpu", weights_only=True)
    tensors = convert_inception({name: tensor.numpy() for name, tensor in state.items()})
    texts = {"source": published.url, "source_sha256": published.sha256, "license": "Apache-2.0"}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(out, tensors, texts)
    except OSError as error:
        raise BadInput("OUT", f"{out} cannot be written ({error.strerror or error})", "Name another") from error
    print(f"wrote {out}")
    return 0


def import_torch() -> Any:
    """PyTorch, which only this command needs."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BadInput("SOURCE", "reading it needs torch", 'Run: pip install "umd_eqx[parity]"') from error
    return torch


if __name__ == "__main__":
    exit_with(lambda words: tyro.cli(convert, args=words))

"""Convert the published Inception-v3 weights, once: `python experiments/convert_inception.py --download`.

To convert a file you already have: `python experiments/convert_inception.py SOURCE.pth OUT.safetensors`.
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
        CACHE_FILE,
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
    """Converts the published Inception-v3 weights (shared by pytorch-fid and torch-fidelity) to safetensors.

    The published file is a pickle. It is opened only if its SHA-256 matches, and only with `weights_only`.

    Args:
        source: The published .pth file. Default: the one in the cache folder.
        out: The .safetensors file to write. Default: the cache folder, where evaluations look for it.
        download: Download SOURCE first if it does not exist (96 MB).
        published: The URL and checksum that SOURCE must match.
    """
    source = source or cache_folder() / Path(published.url).name
    out = out or cache_folder() / CACHE_FILE
    if download and not source.exists():
        import_torch()  # fails before 96 MB are downloaded in vain
        print(f"downloading {published.url}")
        fetch_published(source, published)
    data = read_published(source, published)
    state = import_torch().load(io.BytesIO(data), map_location="cpu", weights_only=True)
    tensors = convert_inception({name: tensor.numpy() for name, tensor in state.items()})
    texts = {"source": published.url, "source_sha256": published.sha256, "license": "Apache-2.0"}
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_tensors(out, tensors, texts)
    except OSError as error:
        raise BadInput("OUT", f"{out} cannot be written ({error.strerror or error})", "Choose another") from error
    print(f"wrote {out}")
    return 0


def import_torch() -> Any:
    """Returns the `torch` module, which only this command needs."""
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise BadInput("SOURCE", "reading it needs torch", 'Run: pip install "umd_eqx[parity]"') from error
    return torch


if __name__ == "__main__":
    exit_with(lambda words: tyro.cli(convert, args=words))

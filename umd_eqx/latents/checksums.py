"""Checksums of the shards of stored latents, which damaged and swapped shards do not match."""

import functools
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

TOLD_BYTES = 10**9
"""Shards of this size or more, in bytes, are announced before they are read."""

_CHUNK_BYTES = 1 << 22


def crc32_of_file(path: Path) -> int:
    """Returns the CRC-32 of a file, reading it in parts. Raises `OSError` if it cannot be read."""
    found = 0
    with path.open("rb") as file:
        for chunk in iter(functools.partial(file.read, _CHUNK_BYTES), b""):
            found = zlib.crc32(chunk, found)
    return found


def mismatched(
    files: Sequence[Path], checksums: Sequence[int], *, threads: int = 4, notify: Callable[[str], None] = print
) -> list[int]:
    """Returns the positions of the files whose CRC-32 differs from the expected one.

    **Arguments:**

    - `files`, `checksums`: the files, and the CRC-32 of each.
    - `threads`: how many files are read at the same time.
    - `notify`: called with a line of text if the files are large.

    **Raises:** `OSError` if a file cannot be read.
    """
    size = sum(file.stat().st_size for file in files)
    if size >= TOLD_BYTES:
        notify(f"checking {size / 1e9:.0f} GB of latents in {files[0].parent}")
    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(crc32_of_file, files))
    return [i for i, (there, expected) in enumerate(zip(found, checksums, strict=True)) if there != expected]

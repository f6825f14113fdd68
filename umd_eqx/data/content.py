"""Fingerprints of data sets: what is in them, and not what they are called or where they lie."""

import hashlib
from collections.abc import Sequence

from etils import epath

from umd_eqx.core.errors import BadInput

WHOLE_BYTES, WHOLE_FILES = 2**28, 20_000
"""Data sets of at most so many bytes in at most so many files are read as a whole."""

PIECES, PIECE = 1024, 2**14
"""Of larger ones, so many evenly spaced pieces of so many bytes are read."""


def digest_of_files(files: Sequence[tuple[str, str]], about: str = "") -> str:
    """Returns a fingerprint of some files, as 32 hexadecimal digits.

    It covers the names of all files, and all bytes of a data set of at most `WHOLE_BYTES` in at most `WHOLE_FILES`
    files. Of a larger one it covers the sizes, and `PIECES` pieces of `PIECE` bytes at even distances within the
    files, or the beginning of each file if there are more files than pieces; of more than `WHOLE_FILES` files, only
    those of about `PIECES` evenly spaced ones. A change elsewhere that keeps the names and sizes goes unnoticed.

    **Arguments:** names, which may contain folders below the data set, and paths or addresses in a bucket; `about` is
    covered as well.

    **Raises:** `BadInput` naming `data.source.dir` if a file cannot be read.
    """
    files = sorted(files)
    total = hashlib.blake2b(f"{about}\n{len(files)}\n".encode(), digest_size=16)
    for name, _ in files:
        total.update(name.encode("utf-8", "surrogateescape") + b"\n")
    paths = [epath.Path(path) for _, path in files]
    try:
        if len(paths) > WHOLE_FILES:
            paths = paths[:: len(paths) // PIECES]
        sizes = [path.stat().length for path in paths]
        whole = len(paths) == len(files) and sum(sizes) <= WHOLE_BYTES and len(files) <= WHOLE_FILES
        each = -(-PIECES // max(len(paths), 1))
        for path, size in zip(paths, sizes, strict=True):
            total.update(f"{size}\n".encode())
            with path.open("rb") as file:
                if whole:
                    total.update(file.read())
                    continue
                for piece in range(each):
                    file.seek(size * piece // each)
                    total.update(file.read(PIECE))
    except OSError as error:
        problem = f"{error.filename or 'a file'} cannot be read ({error.strerror or error})"
        raise BadInput("data.source.dir", problem, "Check the files.") from error
    return total.hexdigest()

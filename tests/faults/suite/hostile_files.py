"""Files that are made to do harm when they are read: as weights, as arrays, as archives of images."""

import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from umd_eqx.core.hashes import sha256_of

Maker = Callable[[str], bytes]
"""Given the path of the canary, which code in the file would create, returns the content of the file."""

BODY = bytes(8)
TENSOR = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
BOMB = 2**31
"""Bytes that an archive of a few megabytes declares, and would be when it is unpacked."""


class Payload:
    """Creates a file as soon as it is unpickled."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (self.path,)


def tensors(header: object, body: bytes = BODY, length: int | None = None) -> bytes:
    """A safetensors file with any header, and any statement about its length."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + body


def zipped(members: dict[str, bytes], kind: int = zipfile.ZIP_STORED) -> bytes:
    """A zip archive."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", kind) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def npy(shape: tuple[int, ...], kind: str = "|u1", content: bytes = b"") -> bytes:
    """An .npy file that declares a shape and a type, whatever it holds."""
    return npy_header(f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}") + content


def npy_header(text: str) -> bytes:
    """The beginning of an .npy file with any text as its header."""
    line = text.encode() + b"\n"
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(line)) + line


def torch_file(content: bytes) -> bytes:
    """The archive that `torch.save` writes, with a pickle in it."""
    return zipped({"archive/data.pkl": content, "archive/version": b"3\n", "archive/data/0": bytes(64)})


def object_arrays(canary: str) -> bytes:
    """What `np.savez` writes for arrays of objects: pickles."""
    file, images = io.BytesIO(), np.empty(2, object)
    images[:] = [Payload(canary), Payload(canary)]
    np.savez(file, images=images, metadata=images)
    return file.getvalue()


def bomb(kind: int) -> bytes:
    """An .npz file of little size with as many black images as take `BOMB` bytes."""
    file = io.BytesIO()
    packed = zipfile.ZipFile(file, "w", kind, compresslevel=1)
    with packed as archive, archive.open("images.npy", "w", force_zip64=True) as member:
        member.write(npy((BOMB // 784, 28, 28)))
        zeros = bytes(2**24)
        for _ in range(BOMB // len(zeros)):
            member.write(zeros)
    return file.getvalue()


def of_no_images(size: int, shape: tuple[int, ...]) -> Maker:
    """An .npz file whose array has the given shape, and as many bytes as told."""
    return lambda _: zipped({"images.npy": npy(shape, content=bytes(size))})


def tar(*members: tuple[str, bytes, dict[str, object]], mode: str = "w") -> bytes:
    """A tar file with members of any name, content and attributes of `tarfile.TarInfo`."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # pyright: ignore[reportCallIssue, reportArgumentType]
        for name, content, attributes in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for attribute, value in attributes.items():
                setattr(info, attribute, value)
            archive.addfile(info, io.BytesIO(content) if content else None)
    return file.getvalue()


def picture() -> bytes:
    """A small image, which is one."""
    file = io.BytesIO()
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(file, "PNG")
    return file.getvalue()


def lying_tar(name: str, size: int) -> bytes:
    """A tar file whose only member claims a size that it has not, in the base-256 form of large numbers."""
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(1024)


def gzip_bomb(name: str) -> bytes:
    """A compressed tar file of little size with one member of `BOMB` zeros."""
    info = tarfile.TarInfo(name)
    info.size = BOMB
    packer, out, zeros = zlib.compressobj(1, zlib.DEFLATED, 31), io.BytesIO(), bytes(2**24)
    out.write(packer.compress(info.tobuf()))
    for _ in range(BOMB // len(zeros)):
        out.write(packer.compress(zeros))
    out.write(packer.compress(bytes(1024)) + packer.flush())
    return out.getvalue()


WEIGHTS: dict[str, Maker] = {
    "empty": lambda _: b"",
    "header of 2^63 bytes": lambda _: tensors({"a": TENSOR}, length=2**63),
    "header of 2^64 - 1 bytes": lambda _: tensors({"a": TENSOR}, length=2**64 - 1),
    "header of 100 MB, which is missing": lambda _: tensors({"a": TENSOR}, length=10**8),
    "overlapping offsets": lambda _: tensors({"a": TENSOR, "b": TENSOR | {"data_offsets": [4, 12]}}, bytes(12)),
    "equal offsets": lambda _: tensors({"a": TENSOR, "b": TENSOR}),
    "negative offsets": lambda _: tensors({"a": TENSOR | {"data_offsets": [-8, 0]}}),
    "offsets of 4 TB": lambda _: tensors({"a": TENSOR | {"shape": [2**40], "data_offsets": [0, 2**42]}}),
    "shape that overflows": lambda _: tensors({"a": TENSOR | {"shape": [2**63, 2**63, 2]}}),
    "shape of 2^62": lambda _: tensors({"a": TENSOR | {"shape": [2**62]}}),
    "nested 100,000 deep": lambda _: tensors(b'{"a":' * 100_000),
    "metadata nested 50,000 deep": lambda _: tensors(b'{"__metadata__":' + b"[" * 50_000 + b"]" * 50_000 + b"}"),
    "number of 100,000 digits": lambda _: tensors(b'{"a":{"dtype":"F32","shape":[' + b"9" * 100_000 + b"]}}"),
    "100,000 empty arrays": lambda _: tensors(b"{" + b",".join(_empty_arrays(10**5)) + b"}", b""),
}
"""Safetensors files."""


def _empty_arrays(count: int) -> Iterator[bytes]:
    for i in range(count):
        yield b'"%d":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}' % i


PICKLES: dict[str, Maker] = {
    **{f"pickle, protocol {n}": lambda path, n=n: pickle.dumps(Payload(path), protocol=n) for n in (0, 2, 4)},
    "torch archive": lambda path: torch_file(pickle.dumps(Payload(path), 2)),
    "npz of objects": object_arrays,
    "npy of objects": lambda path: npy((1,), "|O", pickle.dumps([Payload(path)])),
    "pickle after a valid header": lambda path: tensors({"a": TENSOR}, pickle.dumps(Payload(path))),
}
"""Files that run code if anything unpickles them."""

ARRAYS: dict[str, Maker] = {
    "code as a header": lambda path: zipped({"images.npy": npy_header(f"__import__('os').mkdir({path!r})")}),
    "header nested deeply": lambda _: zipped({"images.npy": npy_header("(" * 5_000 + ")" * 5_000)}),
    "type of objects": lambda _: zipped({"images.npy": npy((2, 28, 28), "|O", bytes(64))}),
    "2^40 images": of_no_images(784, (2**40, 28, 28)),
    "2^62 x 2^62 images": of_no_images(784, (2**62, 2**62, 28)),
    "4 GB of images that are missing": of_no_images(784, (5_500_000, 28, 28)),
    "negative shape": of_no_images(784, (-1, 28, 28)),
    "deflated bomb": lambda _: bomb(zipfile.ZIP_DEFLATED),
    "bzip2 bomb": lambda _: bomb(zipfile.ZIP_BZIP2),
    "members outside": lambda _: zipped({"../images.npy": npy((1, 28, 28), content=bytes(784))}),
}
"""Archives of arrays."""

TARS: dict[str, Maker] = {
    "link to a file": lambda _: tar(("0.png", b"", {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"})),
    "hard link outside": lambda _: tar(("0.png", b"", {"type": tarfile.LNKTYPE, "linkname": "../../etc/passwd"})),
    "device": lambda _: tar(("0.png", b"", {"type": tarfile.CHRTYPE, "devmajor": 1, "devminor": 5})),
    "pipe": lambda _: tar(("0.png", b"", {"type": tarfile.FIFOTYPE})),
    "size of 2^62": lambda _: lying_tar("0.png", 2**62),
    "size of 2^40": lambda _: lying_tar("0.cls", 2**40),
    "bomb": lambda _: gzip_bomb("0.png"),
    "not an image, outside": lambda path: tar((f"..{path}", b"#!/bin/sh\n", {"mode": 0o755})),
}
"""Archives of images."""


def with_card(path: Path, card: Path) -> None:
    """Writes a card beside a file that states its SHA-256, so that its content is looked at."""
    content = json.loads(card.read_text()) | {"sha256": sha256_of(path.read_bytes())}
    path.with_suffix(".json").write_text(json.dumps(content))

"""Files at URLs (`gs://`, `s3://`, `abfs://`, `az://`, `file://`, `memory://`), read and written through fsspec."""

import functools
import os
import posixpath
import re
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import write_atomically

PROTOCOLS = {"gs": "gcsfs", "gcs": "gcsfs", "s3": "s3fs", "abfs": "adlfs", "az": "adlfs", "file": None, "memory": None}
"""The supported protocols, and the package that each needs in addition to fsspec."""

_SHOWN = "gs://, s3://, abfs://, file:/// or memory://"
_MOST_REASON = 160


def is_url(path: str | os.PathLike[str] | None) -> bool:
    """Whether this is a URL and not a local path."""
    return path is not None and "://" in os.fspath(path)


def require_url(field: str, url: str) -> None:
    """Raises `BadInput` naming `field` unless `url` is a folder or a file at one of `PROTOCOLS`.

    It is also refused if the package of its protocol is not installed, and if it contains a password or a query, which
    are never shown: a URL is recorded in the files of a run.
    """
    protocol, _, rest = url.partition("://")
    if re.search(r":[^@]*@", rest) or "?" in rest:
        problem = f"this {protocol if protocol in PROTOCOLS else ''}:// URL contains a password or a query"
        hint = "Leave it out: fsspec finds credentials in the environment and in the files of the cloud's own tools"
        raise BadInput(field, problem, hint)
    if "://" not in url:
        raise BadInput(field, f"{url!r} is not a URL", f"Use {_SHOWN}, such as file://{os.path.abspath(url)}")
    if protocol not in PROTOCOLS or "://" in rest or not url.isprintable():
        raise BadInput(field, f"{url!r} has no supported protocol", f"Use {_SHOWN}")
    if not rest.strip("/") or (protocol == "file" and not rest.startswith("/")) or ".." in rest.split("/"):
        example = "file:///mnt/backup/umd" if protocol == "file" else f"{protocol}://bucket/umd"
        raise BadInput(field, f"{url!r} does not name a folder", f"Use a URL such as {example}")
    try:
        fsspec.get_filesystem_class(protocol)
    except ImportError as error:
        package = PROTOCOLS[protocol]
        raise BadInput(field, f"{protocol}:// needs the package {package}", f"Run `pip install {package}`") from error


def reason(error: BaseException) -> str:
    """Returns the first line of an error as a short clause, without what could be a secret in a URL."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    text = re.sub(r"\?\S+", "?...", re.sub(r"://[^/\s]*@", "://...@", text))
    return "".join(c if c.isprintable() else " " for c in text)[:_MOST_REASON]


def is_inner_name(name: str) -> bool:
    """Whether a relative name, with `/` between its parts, stays in its folder on any system."""
    parts = name.split("/")
    return name.isprintable() and "\\" not in name and all(part not in ("", ".", "..") for part in parts)


class Remote:
    """A folder at a URL. Nothing is cached, and every method may raise whatever the protocol's package raises.

    **Arguments:**

    - `url`: the folder, which need not exist.
    - `field`: the field that named it. Raises `BadInput` as `require_url` does.
    """

    def __init__(self, url: str, field: str):
        require_url(field, url)
        self.url = url.rstrip("/")

    @functools.cached_property
    def _place(self) -> tuple[Any, str]:
        # Only a local file system has folders that must be created. In a bucket, it might create the bucket.
        options = {"auto_mkdir": True} if self.url.startswith("file://") else {}
        files, root = fsspec.core.url_to_fs(self.url, use_listings_cache=False, **options)
        return files, str(root).rstrip("/")

    @property
    def _files(self) -> Any:
        return self._place[0]

    @property
    def _root(self) -> str:
        return self._place[1]

    def list(self) -> dict[str, int | None]:
        """Returns what is in the folder by name: the size of each file in bytes, and None for each folder."""
        try:
            found = self._files.ls(self._root, detail=True)
        except (FileNotFoundError, NotADirectoryError):
            return {}
        named = {posixpath.basename(str(each["name"]).rstrip("/")): each for each in found}
        return {name: None if each["type"] == "directory" else int(each["size"]) for name, each in named.items()}

    def sizes(self) -> dict[str, int]:
        """Returns the sizes in bytes of all files in the folder and below it, by relative name."""
        found = self._files.find(self._root, detail=True)
        return {str(path)[len(self._root) :].strip("/"): int(each["size"]) for path, each in found.items()}

    def exists(self, name: str) -> bool:
        """Whether there is a file of this name, relative to the folder."""
        return bool(self._files.exists(self._at(name)))

    def read(self, name: str) -> bytes:
        """Returns the content of a file. Raises `FileNotFoundError` if there is none."""
        return self._files.cat_file(self._at(name))

    def write(self, name: str, data: bytes) -> None:
        """Writes a file so that it has its old or its new content at any time, as object stores do."""
        if isinstance(self._files, LocalFileSystem):
            path = Path(self._at(name))
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, data)
        else:
            self._files.pipe_file(self._at(name), data)

    def upload(self, path: str | os.PathLike[str], name: str) -> None:
        """Copies a local file to this name. An interrupted copy may leave a part of it in a local file system."""
        self._files.put_file(os.fspath(path), self._at(name))

    def download(self, name: str, path: str | os.PathLike[str]) -> None:
        """Copies a file to a local path, whose folder is created. Raises `FileNotFoundError` if there is none."""
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        self._files.get_file(self._at(name), os.fspath(path))

    def delete(self, name: str) -> None:
        """Deletes a file, or a folder with all that is in it, if it exists."""
        try:
            self._files.rm(self._at(name), recursive=True)
        except FileNotFoundError:
            return

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}"

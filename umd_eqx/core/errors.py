"""The exception for invalid user input, and helpers that report unwritable paths and errors of disks as such."""

import contextlib
import errno
import os
import re
import tempfile
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)
_MOST_NAME_BYTES, _MOST_PATH_BYTES, _TEMPORARY_BYTES = 255, 4095, 24  # of Linux, and what `replacing` appends
_TROUBLE = (errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE, errno.ENAMETOOLONG)


class BadInput(ValueError):
    """Invalid user input, with a hint on how to correct it.

    In Python it is an ordinary `ValueError`. The commands print it as one line, with the flags that set the fields it
    names (`umd_eqx.commands.cli`), and exit with status 2.

    **Arguments:**

    - `field`: the dotted name of the field or argument at fault (`"data.size"`), or a file.
    - `problem`: the problem in one clause, including the value.
    - `hint`: what to do instead, as an imperative. Fields in it, and in `problem`, are written as `` `data.size` `` or
        `` `data.size=28` ``.
    """

    def __init__(self, field: str, problem: str, hint: str):
        super().__init__(f"{field}: {problem}. {hint}")
        self.field, self.problem, self.hint = field, problem, hint

    def __reduce__(self) -> tuple[type["BadInput"], tuple[str, str, str]]:
        return BadInput, (self.field, self.problem, self.hint)  # an exception is pickled with its message alone


def member(field: str, name: str) -> str:
    """Returns the dotted name of a member of a field, `"data.size"`, or `name` alone if `field` is empty."""
    return f"{field}.{name}" if field else name


def require_writable(field: str, path: str | os.PathLike[str]) -> None:
    """Raises `BadInput` naming `field` if no file can be written at `path`.

    That is the case for a URL, if its folder does not exist, if `path` is a folder or too long, or if permission is
    missing.
    """
    require_local(field, path)
    require_short(field, path, _TEMPORARY_BYTES)
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(path):
        raise BadInput(field, f"{path} is a folder", "Give the name of a file")
    if not os.path.isdir(folder):
        raise BadInput(field, f"there is no folder {os.path.dirname(path) or folder}", "Create it or choose another")
    if not name or not os.access(folder, os.W_OK):
        raise BadInput(field, f"{path} cannot be written to", "Choose another path")


def require_local(field: str, path: str | os.PathLike[str]) -> None:
    """Raises `BadInput` naming `field` if `path` is a URL, where only a local or mounted disk can be used."""
    protocol, separator, rest = os.fspath(path).partition("://")
    if separator:
        url = f"{protocol}://{rest.rpartition('@')[2].partition('?')[0]}"  # without a password
        raise BadInput(
            field, f"{url} is not on this machine", "Copy it to a local disk or mount it, and give that path"
        )


def require_short(field: str, path: str | os.PathLike[str], below: int) -> None:
    """Raises `BadInput` naming `field` if a path is too long for a file system.

    **Arguments:**

    - `path`: a file or a folder.
    - `below`: the number of bytes that are appended to its name, or for a folder, the length of the longest path in it.
    """
    whole = os.fsencode(os.path.abspath(path))
    longest = max(map(len, whole.split(b"/")))
    if longest + _TEMPORARY_BYTES > _MOST_NAME_BYTES or len(whole) + below > _MOST_PATH_BYTES:
        shown = f"{os.fspath(path)[:60]}..."
        raise BadInput(field, f"{shown} is too long a path ({len(whole)} bytes)", "Choose a shorter one")


def require_writable_folder(field: str, folder: str | os.PathLike[str]) -> None:
    """Raises `BadInput` naming `field` if no file can be created in an existing folder, which is tried."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".", suffix=".tmp"):
            pass
    except OSError as error:
        problem = f"{os.fspath(folder)} cannot be written to ({error.strerror})"
        raise BadInput(field, problem, "Free it for writing, or choose another") from error


def disk_trouble(error: BaseException, directory: str | os.PathLike[str] = ".") -> tuple[bool, str] | None:
    """Explains an error that a disk is the cause of; None for any other error.

    **Arguments:**

    - `error`: an `OSError`, or a `ValueError` of tensorstore, which quotes the number of the system's error.
    - `directory`: reported as the place if the error itself names no file.

    **Returns:** whether the disk is full, and one clause that names the file.
    """
    if isinstance(error, BadInput) or not isinstance(error, OSError | ValueError):
        return None
    number = getattr(error, "errno", None)
    if number is None and (quoted := re.search(r"os_error_code='(\d+)'", str(error))):
        number = int(quoted[1])
    where = os.fspath(getattr(error, "filename", None) or directory)
    if number in _FULL or any(os.strerror(n) in str(error) for n in _FULL):
        return True, f"the disk of {where} is full"
    return (False, f"{where} cannot be used ({os.strerror(number)})") if number in _TROUBLE else None


@contextlib.contextmanager
def disk_errors(
    directory: str | os.PathLike[str],
    field: str = "run_dir",
    on_retry: str = "it resumes from the last saved checkpoint",
) -> Iterator[None]:
    """A context manager that converts errors of a disk to `BadInput`; other errors pass unchanged.

    They are a full disk or an exceeded quota, a read-only disk, missing permission, a file that is too large, an error
    of the device, and a name that is too long.

    **Arguments:**

    - `directory`: reported as the place if the error itself names no file.
    - `field`: the field that names it.
    - `on_retry`: what the same command does when it is run again; empty if it starts from the beginning.
    """
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        if (found := disk_trouble(error, directory)) is None:
            raise
        full, problem = found
        what = "Free some space" if full else "Resolve this"
        hint = f"{what} and run the same command again" + (f": {on_retry}" if on_retry else "")
        raise BadInput(field, problem, hint) from error

"""The exception for invalid user input, and helpers that report unwritable paths and full disks as such."""

import contextlib
import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)


class BadInput(ValueError):
    """Invalid user input, with a hint on how to correct it.

    The commands print it as one line and exit with status 2; in Python it is an ordinary `ValueError`.

    **Arguments:**

    - `field`: the flag or file at fault, as the user wrote it (`"--data.size"`).
    - `problem`: the problem in one clause, including the value.
    - `hint`: what to do instead, as an imperative.
    """

    def __init__(self, field: str, problem: str, hint: str):
        super().__init__(f"{field}: {problem}. {hint}")
        self.field, self.problem, self.hint = field, problem, hint


def require_writable(flag: str, path: str | os.PathLike[str]) -> None:
    """Raises `BadInput` naming `flag` if no file can be written at `path`.

    That is the case if its folder does not exist, if `path` itself is a folder, or if permission is missing.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(path):
        raise BadInput(flag, f"{path} is a folder", "Give the name of a file")
    if not os.path.isdir(folder):
        raise BadInput(flag, f"there is no folder {os.path.dirname(path) or folder}", "Create it or choose another")
    if not name or not os.access(folder, os.W_OK):
        raise BadInput(flag, f"{path} cannot be written to", "Choose another path")


@contextlib.contextmanager
def disk_errors(
    directory: str | os.PathLike[str],
    field: str = "--run-dir",
    on_retry: str = "it resumes from the last saved checkpoint",
) -> Iterator[None]:
    """A context manager that converts a full disk or an exceeded quota to `BadInput`; other errors pass unchanged.

    **Arguments:**

    - `directory`: reported as the full place if the error itself names no file.
    - `field`: the flag that names it.
    - `on_retry`: what the same command does when it is run again; empty if it starts from the beginning.
    """
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        # tensorstore raises a ValueError that contains the system's error message.
        if getattr(error, "errno", None) not in _FULL and not any(os.strerror(n) in str(error) for n in _FULL):
            raise
        where = getattr(error, "filename", None) or os.fspath(directory)
        hint = "Free some space and run the same command again" + (f": {on_retry}" if on_retry else "")
        raise BadInput(field, f"the disk of {where} is full", hint) from error

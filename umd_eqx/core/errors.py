"""The exception for invalid user input, and helpers that report unwritable paths and full disks as such."""

import contextlib
import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)


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

    That is the case if its folder does not exist, if `path` itself is a folder, or if permission is missing.
    """
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(path):
        raise BadInput(field, f"{path} is a folder", "Give the name of a file")
    if not os.path.isdir(folder):
        raise BadInput(field, f"there is no folder {os.path.dirname(path) or folder}", "Create it or choose another")
    if not name or not os.access(folder, os.W_OK):
        raise BadInput(field, f"{path} cannot be written to", "Choose another path")


@contextlib.contextmanager
def disk_errors(
    directory: str | os.PathLike[str],
    field: str = "run_dir",
    on_retry: str = "it resumes from the last saved checkpoint",
) -> Iterator[None]:
    """A context manager that converts a full disk or an exceeded quota to `BadInput`; other errors pass unchanged.

    **Arguments:**

    - `directory`: reported as the full place if the error itself names no file.
    - `field`: the field that names it.
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

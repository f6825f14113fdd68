"""The exception for input that a user can mend, and a full disk reported by it."""

import contextlib
import errno
import os
from collections.abc import Iterator

_FULL = (errno.ENOSPC, errno.EDQUOT)


class BadInput(ValueError):
    """Input that cannot work, with a hint.

    The commands print it as one line and exit with 2; in Python it is an ordinary `ValueError`.

    **Arguments:**

    - `field`: the flag or file at fault, as the user wrote it (`"--data.size"`).
    - `problem`: what is wrong with it, in one clause, with the value.
    - `hint`: what to do instead.
    """

    def __init__(self, field: str, problem: str, hint: str):
        super().__init__(f"{field}: {problem}. {hint}")
        self.field, self.problem, self.hint = field, problem, hint


def require_writable(flag: str, path: str | os.PathLike[str]) -> None:
    """Raises `BadInput` naming `flag` where no file can be written at `path`: no folder, one of that name, no right."""
    folder, name = os.path.split(os.path.abspath(path))
    if os.path.isdir(path):
        raise BadInput(flag, f"{path} is a folder", "Give the name of a file")
    if not os.path.isdir(folder):
        raise BadInput(flag, f"there is no folder {os.path.dirname(path) or folder}", "Make it, or choose another")
    if not name or not os.access(folder, os.W_OK):
        raise BadInput(flag, f"{path} cannot be written to", "Choose another place")


@contextlib.contextmanager
def disk_errors(
    directory: str | os.PathLike[str],
    field: str = "--run-dir",
    goes_on: str = "it goes on from the last checkpoint that was saved",
) -> Iterator[None]:
    """A context in which a full disk, or a used-up quota, raises `BadInput`; any other error is left as it is.

    **Arguments:**

    - `directory`: named as what is full where the error itself names no file.
    - `field`: the flag that named it.
    - `goes_on`: what the same command does when it is run again, if it does not begin anew.
    """
    try:
        yield
    except BadInput:
        raise
    except (OSError, ValueError) as error:
        # tensorstore has the system's words in a ValueError.
        if getattr(error, "errno", None) not in _FULL and not any(os.strerror(n) in str(error) for n in _FULL):
            raise
        where = getattr(error, "filename", None) or os.fspath(directory)
        hint = "Free some space and run the same command again" + (f": {goes_on}" if goes_on else "")
        raise BadInput(field, f"the disk of {where} is full", hint) from error

"""Runs a command of `experiments/` and writes down which files it opened for reading, and how often.

    python tests/opened.py REPORT ROOT[:ROOT ...] SCRIPT WORDS ...

REPORT becomes a JSON object: how often each file below one of the roots was opened. Python's own opens are seen by an
audit hook, before anything else is imported. Two libraries open files in native code, where no hook sees it: what they
are asked to open is counted where they are called.
"""

import collections
import functools
import json
import os
import runpy
import sys
import threading
from typing import Any

WRITING = ("w", "a", "x", "+")


def main(report: str, roots: list[str], script: str, words: list[str]) -> None:
    counts: collections.Counter[str] = collections.Counter()
    lock = threading.Lock()

    def note(path: Any) -> None:
        place = os.path.realpath(os.fspath(path))
        if any(place.startswith(root + os.sep) for root in roots) and not os.path.isdir(place):
            with lock:
                counts[place] += 1

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event != "open" or isinstance(arguments[0], int):
            return
        path, mode, flags = arguments
        reading = flags & os.O_ACCMODE == os.O_RDONLY if mode is None else not any(m in mode for m in WRITING)
        if reading:
            note(os.fsdecode(path))

    sys.addaudithook(hook)

    def counted(function: Any) -> Any:
        @functools.wraps(function)
        def call(path: Any, *rest: Any, **named: Any) -> Any:
            note(path)
            return function(path, *rest, **named)

        return call

    import safetensors
    from array_record.python import array_record_module  # pyright: ignore[reportAttributeAccessIssue]

    safetensors.safe_open = counted(safetensors.safe_open)
    array_record_module.ArrayRecordReader = counted(array_record_module.ArrayRecordReader)
    sys.argv = [script, *words]
    try:
        runpy.run_path(script, run_name="__main__")
    finally:
        with open(report, "w") as file:
            json.dump(counts, file)


if __name__ == "__main__":
    main(sys.argv[1], [os.path.realpath(root) for root in sys.argv[2].split(os.pathsep)], sys.argv[3], sys.argv[4:])

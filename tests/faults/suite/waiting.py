"""Waiting for what a process says."""

import os
import subprocess

import pytest
from faults.tiny import ended


def read_errors_until(process: subprocess.Popen[str], text: str) -> None:
    """Returns when a process has written something to stderr; `ended` gives only what comes later."""
    assert process.stderr is not None
    said = b""
    while text.encode() not in said:
        some = os.read(process.stderr.fileno(), 4096)  # from below the buffer, which would keep what `ended` is to read
        if not some:
            pytest.fail(f"it ended without {text!r}: {said.decode()[-500:]}{ended(process)}")
        said += some

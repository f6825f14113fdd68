"""An output stream whose failures do not interrupt training."""

import contextlib
import io
import os
from typing import Any

_STDOUT = 1


class SafeStream(io.TextIOBase):
    """A stream that tolerates failures of the underlying stream: closed, a broken pipe, a lost terminal."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str, /) -> int:
        """Writes text, with unsupported characters as question marks, and returns its length."""
        if self._stream is not None:
            try:
                encoding = self.encoding
                self._stream.write(text.encode(encoding, "replace").decode(encoding))
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        """Flushes the underlying stream."""
        if self._stream is not None:
            try:
                self._stream.flush()
            except (OSError, ValueError):
                self._give_up()

    def isatty(self) -> bool:
        """Whether the underlying stream is a terminal."""
        try:
            return self._stream is not None and self._stream.isatty()
        except ValueError:
            return False

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """The encoding of the underlying stream, by which rich selects its characters."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _give_up(self) -> None:
        stream, self._stream = self._stream, None
        # Flushing the buffer of stdout would fail again when Python exits, and change the exit status.
        with contextlib.suppress(OSError, ValueError):
            if stream is not None and stream.fileno() == _STDOUT:
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, _STDOUT)
                os.close(null)

"""Weights with their cards at URLs: fetched into a cache, compared with their cards, and written."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from umd_eqx.core.cards import card_of
from umd_eqx.core.errors import BadInput
from umd_eqx.core.files import replacing, write_atomically
from umd_eqx.core.hashes import sha256_of, sha256_of_file
from umd_eqx.core.json_files import parse_json
from umd_eqx.core.remote import Remote, is_url, reason, require_url

_SUFFIX = ".safetensors"


def cache_folder() -> Path:
    """The folder for what is fetched from URLs: `umd_eqx` in `$XDG_CACHE_HOME`, or in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "umd_eqx"


def local_weights(path: str | os.PathLike[str], field: str) -> Path:
    """Returns where the weights at a path or a URL lie on this machine, with their card beside them.

    Those at a URL are copied to `cache_folder` unless the file that their card describes is there already.

    **Raises:** `BadInput` naming `field` if a URL is not that of a safetensors file, cannot be read, or the file is not
    the one that its card describes. A path is returned as it is.
    """
    if not is_url(path):
        return Path(path)
    url = os.fspath(path)
    folder, name = split_url(url, field)
    at = cache_folder() / sha256_of(url.encode())[:16] / name
    try:
        card = folder.read(card_of(name).name)
        expected = parse_json(card)["sha256"]
        if not (at.is_file() and sha256_of_file(at) == expected):
            at.parent.mkdir(parents=True, exist_ok=True)
            with replacing(at) as unfinished:
                folder.download(name, unfinished)
                if sha256_of_file(unfinished) != expected:
                    raise BadInput(field, f"{url} is not the file that its card describes", "Export the weights again")
        write_atomically(card_of(at), card)
    except BadInput:
        raise
    except FileNotFoundError as error:
        hint = "Give the .safetensors file of an export, which has a .json card beside it"
        raise BadInput(field, f"there is no export at {url}", hint) from error
    except (ValueError, KeyError, TypeError) as error:
        raise BadInput(field, f"the card of {url} cannot be read", "Export the weights again") from error
    except Exception as error:  # whatever the protocol's package raises
        raise BadInput(field, f"{url} cannot be read ({reason(error)})", "Try again, or copy it here") from error
    return at


@contextlib.contextmanager
def writing_weights(path: str | os.PathLike[str], field: str) -> Iterator[Path]:
    """A context that yields where to write weights and their card: `path` itself, or a temporary file for a URL.

    That and its card are copied to the URL when the block ends, the card last.

    **Raises:** `BadInput` naming `field` if a URL is not that of a safetensors file, exists or cannot be written.
    """
    if not is_url(path):
        yield Path(path)
        return
    url = os.fspath(path)
    folder, name = split_url(url, field)
    with _written(url, field):
        there = [each for each in (name, card_of(name).name) if folder.exists(each)]
    if there:
        raise BadInput(field, f"{folder.url}/{there[0]} already exists", "Choose another name, or delete it")
    with tempfile.TemporaryDirectory(prefix="umd_eqx_export_") as temporary:
        weights = Path(temporary) / name
        yield weights
        with _written(url, field):
            folder.upload(weights, name)
            folder.write(card_of(name).name, card_of(weights).read_bytes())


def new_weights(path: str | os.PathLike[str]) -> Path:
    """Validates the path for new weights and their card. Raises `BadInput` naming `out` if either file exists."""
    location = Path(path)
    if location.suffix != _SUFFIX:
        raise BadInput("out", f"{location} does not end in .safetensors", "Choose a name that does")
    for existing in (location, card_of(location)):
        if existing.exists():
            raise BadInput("out", f"{existing} already exists", "Choose another name, or delete it")
    return location


def card_at(path: str | os.PathLike[str]) -> str:
    """Returns the path or the URL of the card of weights at a path or a URL."""
    return os.path.splitext(os.fspath(path))[0] + ".json"


def split_url(url: str, field: str) -> tuple[Remote, str]:
    """Returns the folder of weights at a URL, and the name of their file.

    Raises `BadInput` naming `field` if the URL does not end in .safetensors, or cannot be used (`require_url`).
    """
    require_url(field, url)
    parent, _, name = url.rpartition("/")
    if not name.endswith(_SUFFIX) or name == _SUFFIX:
        hint = "Give the URL of an exported file, or copy the folder to this machine"
        raise BadInput(field, f"{url} does not end in {_SUFFIX}", hint)
    return Remote(parent, field), name


@contextlib.contextmanager
def _written(url: str, field: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever the protocol's package raises
        raise BadInput(field, f"{url} cannot be written to ({reason(error)})", "Choose another place") from error

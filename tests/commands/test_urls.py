"""What the commands make of URLs: weights are read and written there, and everything else is refused in one line."""

import importlib.util
import json

import fsspec
import pytest

from umd_eqx.commands.cli import exit_with, main
from umd_eqx.commands.encode_latents import encode_latents
from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.pretrain import PRETRAIN
from umd_eqx.runs.pretrained import export, from_pretrained

FILES = fsspec.filesystem("memory")
URL = "memory://exports/umd.safetensors"


@pytest.fixture(autouse=True)
def empty(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]
    yield
    FILES.store.clear()
    FILES.pseudo_dirs[:] = [""]


def refused(capsys, *words: str) -> str:
    """The only line that a command prints."""
    with pytest.raises(SystemExit) as end:
        main(PRETRAIN, list(words))
    assert end.value.code == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    return error.removeprefix("error: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint.mirror", "there"], "--checkpoint.mirror: 'there' is not a URL"),
        (["--checkpoint.mirror", "ftp://there/x"], "--checkpoint.mirror: 'ftp://there/x' has no supported protocol"),
        (["--run-dir", "gs://bucket/x"], "--run-dir: gs://bucket/x is not a folder on this machine"),
        (["--data.dir", "memory://images"], "--data.dir: memory://images is not on this machine. Copy it"),
        (["--json", "gs://bucket/x.json"], "--json: gs://bucket/x.json is not on this machine"),
        (["--profile.from", "3"], "--profile.to: it is missing beside --profile.from"),
        (["--profile.from", "3", "--profile.to", "2"], "--profile.to: 2 is not after --profile.from 3"),
        (
            ["--profile.from", "3", "--profile.to", "9", "--limit-steps", "8"],
            "--profile.to: 9 is after the last step of the run, 8",
        ),
    ],
)
def test_other_urls_and_steps_are_refused_in_one_line(capsys, words, said, tmp_path):
    assert refused(capsys, *words).startswith(said)
    assert not any(path.name != "cache" for path in tmp_path.iterdir())


@pytest.mark.parametrize(("flag", "protocol"), [("--checkpoint.mirror", "gs"), ("--data.dir", "s3")])
def test_a_missing_package_is_named(capsys, flag, protocol):
    package = {"gs": "gcsfs", "s3": "s3fs"}[protocol]
    if importlib.util.find_spec(package) is not None:
        pytest.skip(f"{package} is installed")
    expected = f"{flag}: {protocol}:// needs the package {package}. Run `pip install {package}`\n"
    assert refused(capsys, flag, f"{protocol}://bucket/x") == expected


@pytest.mark.parametrize("more", [[], ["--print-config"], ["--dry-run"]])
def test_a_password_is_refused_and_written_nowhere(capsys, tmp_path, more):
    said = refused(capsys, "--checkpoint.mirror", "s3://key:canary@bucket/x", *more)
    assert "--checkpoint.mirror: this s3:// URL contains a password or a query" in said
    assert "canary" not in said
    assert not list(tmp_path.iterdir())


def test_latents_are_not_read_or_written_at_a_url(capsys, tmp_path):
    words = ["--tokenizer", "fashion-kl", "--data.latents", "gs://bucket/latents"]
    assert "--data.latents: gs://bucket/latents is not on this machine" in refused(capsys, "latent-umd", *words)
    with pytest.raises(SystemExit):
        exit_with(encode_latents, ["--tokenizer", "fashion-kl", "--out", "gs://bucket/latents"])
    assert capsys.readouterr().err.startswith("error: --out: gs://bucket/latents is not on this machine")
    assert not list(tmp_path.iterdir())


def test_weights_are_exported_to_a_url_and_read_from_it():
    shipped = from_pretrained()
    assert export(shipped, URL) == "memory://exports/umd.json"
    assert json.loads(FILES.cat_file("/exports/umd.json"))["preset"] == shipped.preset
    found = from_pretrained(URL)
    assert found.digest == shipped.digest
    assert found.describe() == shipped.describe()
    with pytest.raises(BadInput, match="already exists"):
        export(shipped, URL)


def test_where_weights_cannot_be_exported_is_said_before_they_are_loaded(capsys):
    said = refused(capsys, "export", "--run", "nowhere", "--out", "memory://exports/umd.pt")
    assert said.startswith("--out: memory://exports/umd.pt does not end in .safetensors")
    said = refused(capsys, "export", "--run", "memory://exports/none.safetensors", "--out", "umd.safetensors")
    assert said.startswith("--run: there is no export at memory://exports/none.safetensors")

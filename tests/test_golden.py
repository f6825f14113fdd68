"""The package against the authors' numbers, and that the comparison can fail."""

from pathlib import Path

import golden
import numpy as np
import pytest
from golden_cases import GROUPS, network
from golden_cases.base import Folder, Group, Result, run_group

BY_NAME = {group.name: group for group in GROUPS}
BUILT = [group for group in GROUPS if group.run is not None]


@pytest.fixture(scope="module")
def recorded(golden_data) -> Folder:
    return Folder(golden_data)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_agrees_with_the_reference(group: Group, recorded: Folder):
    if group.run is None:
        pytest.skip("not built")
    result = run_group(group, recorded)
    assert result.comparisons
    assert result.status == "ok", result.worst


def test_everything_recorded_is_compared(recorded: Folder):
    for group in BUILT:
        run_group(group, recorded)
    assert recorded.skipped == []


# (group, file, array, whole): one number is changed, or all of an array where single numbers may differ.
PERTURBED = [
    ("model outputs", "model_adaln", "m375_label/pred", False),
    ("model outputs", "model_noadaln", "m000_uncond/pre_logits", False),
    ("model outputs", "model_adaln", "m000_cfg2/pre_logits", False),
    ("model outputs", "model_noadaln", "inter/cond", False),
    ("model outputs", "model_inputs", "timeemb/out", False),
    ("patch head", "conv_transpose", "out", False),
    ("mask order, kept ids, masks", "model_inputs", "m375/ids_restore", False),
    ("mask order, kept ids, masks", "model_inputs", "m750/ids_keep", False),
    ("mask order, kept ids, masks", "model_noadaln", "m750/mask", False),
    ("losses", "loss", "umd/x0_loss", False),
    ("losses", "loss", "mae/loss", False),
    ("losses", "loss", "finetune/mae_loss", False),
    ("losses", "loss", "x_t", False),
    ("losses", "e2e_loss_grad", "noadaln/eps_loss", False),
    ("gradients (of the leaf's norm)", "e2e_loss_grad", "noadaln/grad_stats/cls", False),
    ("gradients (of the leaf's norm)", "adamw", "grad1/Encoder/encoder_norm/scale", False),
    ("gradient norm (relative)", "e2e_loss_grad", "adaln/grad_norm", False),
    ("AdamW, float32 first moment", "adamw", "p3_f32mu/cls", False),
    ("AdamW, float32 first moment", "adamw", "update_norms_f32mu", False),
    ("AdamW, bfloat16, eager (share out)", "adamw", "delta3/cls", True),
    ("AdamW, bfloat16, jit (share out)", "adamw", "delta3_jit/cls", True),
    ("AdamW, decayed leaves", "adamw", "decay/pos_embedding", False),
    ("DDIM", "ddim", "cosine_s10_clip1_eta1_A/sample", False),
    ("DDIM", "ddim", "cosine_s10_clip1_eta1_B/x_before_each_eval", False),
    ("DDIM", "ddim", "evaluated_t_s62", False),
    ("Inception score, statistics, guidance", "model_adaln", "m000_cfg2/pred", False),
    ("learning-rate schedule (of the peak)", "lr_schedule", "mae/lr", False),
    ("learning-rate schedule (of the peak)", "lr_schedule", "small/warmup_steps", False),
    ("diffusion tables", "gd_linear", "posterior_mean_coef1", False),
    ("diffusion tables", "gd_cosine", "alphas_cumprod", False),
    ("few-shot, indices", "fewshot", "seed1_shot10/idx", False),
    ("few-shot, accuracy", "fewshot", "seed0_shot2/acc", False),
    ("few-shot, weights", "fewshot", "seed0_shot100/w", False),
    ("Frechet distance", "fid_is", "frechet", False),
    ("Frechet distance", "fid_is", "frechet_1_vs_3_singular", False),
    ("Inception score, statistics, guidance", "fid_is", "inception_score", False),
    ("Inception score, statistics, guidance", "fid_is", "inception_score_1split", False),
    ("Inception score, statistics, guidance", "fid_is", "mu1", False),
    ("Inception score, statistics, guidance", "fid_is", "sigma2", False),
    ("Inception score, statistics, guidance", "fid_is", "stats_mu", False),
    ("Inception score, statistics, guidance", "fid_is", "stats_sigma", False),
    ("Inception score, statistics, guidance", "fid_is", "stats_is", False),
    ("resize to 299", "fid_is", "resized_row", False),
    ("resize to 299", "fid_is", "resized_col", False),
]


def changed(golden_data: Path, tmp_path: Path, file: str, edit) -> Path:
    """A copy of the folder in which `edit` has changed the arrays of one file."""
    for path in golden_data.glob("*.npz"):
        if path.stem != file:
            (tmp_path / path.name).symlink_to(path)
    arrays = dict(np.load(golden_data / f"{file}.npz", allow_pickle=False))
    edit(arrays)
    np.savez(tmp_path / f"{file}.npz", **arrays)
    return tmp_path


def perturb(value: np.ndarray, group: Group, whole: bool) -> np.ndarray:
    """The array, a little beyond the tolerance of the group."""
    if value.dtype == bool:
        return ~value
    by = 1.0
    if group.tolerance and value.dtype.kind == "f":
        share_rule = "share out" in group.name
        by = 3 * (2e-5 if share_rule else group.tolerance) * max(1.0, float(np.abs(value).max()))
    value = value.astype(np.float64) if value.dtype.kind == "f" else value.copy()
    value.reshape(-1)[slice(None) if whole else 0] += np.asarray(by).astype(value.dtype)
    return value


@pytest.mark.parametrize(("name", "file", "key", "whole"), PERTURBED, ids=lambda value: str(value))
def test_fails_when_a_number_is_off(name: str, file: str, key: str, whole: bool, golden_data: Path, tmp_path: Path):
    def edit(arrays):
        arrays[key] = perturb(arrays[key], BY_NAME[name], whole)

    result = run_group(BY_NAME[name], Folder(changed(golden_data, tmp_path, file, edit)))
    assert result.status == "FAIL"
    # What was not touched still agrees, so that the error is where the change is.
    out = [comparison for comparison in result.comparisons if comparison.error > BY_NAME[name].tolerance]
    assert len(out) <= 2


def test_the_round_trip_fails_when_a_leaf_is_misplaced(golden_data: Path, monkeypatch):
    def swapped(model):
        leaves = network_to_reference(model)
        one, other = "Encoder/Encoder1DBlock_0", "Encoder/Encoder1DBlock_1"
        name = "MultiHeadDotProductAttention_0/query/bias"
        leaves[f"{one}/{name}"], leaves[f"{other}/{name}"] = leaves[f"{other}/{name}"], leaves[f"{one}/{name}"]
        return leaves

    network_to_reference = network.to_reference
    monkeypatch.setattr(network, "to_reference", swapped)
    assert run_group(BY_NAME["parameters there and back"], Folder(golden_data)).status == "FAIL"


def test_every_built_group_was_made_to_fail():
    assert {name for name, *_ in PERTURBED} | {"parameters there and back"} == {group.name for group in BUILT}


def test_nan_is_out(golden_data: Path, tmp_path: Path):
    def edit(arrays):
        arrays["out"][0, 0, 0, 0] = np.nan

    folder = Folder(changed(golden_data, tmp_path, "conv_transpose", edit))
    assert run_group(BY_NAME["patch head"], folder).status == "FAIL"


def test_a_few_flipped_roundings_are_let_through(golden_data: Path, tmp_path: Path):
    def edit(arrays):
        arrays["delta3/embedding/kernel"].reshape(-1)[:5] += 1.0  # of 1536

    group = BY_NAME["AdamW, bfloat16, eager (share out)"]
    result: Result = run_group(group, Folder(changed(golden_data, tmp_path, "adamw", edit)))
    assert result.status == "ok"
    assert result.worst is not None
    assert result.worst.error > 0


class TestCommand:
    def test_good_file_alone(self, golden_data: Path, tmp_path: Path, capsys):
        (tmp_path / "gd_linear.npz").symlink_to(golden_data / "gd_linear.npz")
        assert golden.main([str(tmp_path)]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[-1] for line in lines if line.startswith("diffusion tables")] == ["ok"]
        assert any(line.startswith("patch head") and line.endswith("no file") for line in lines)
        assert any(line.startswith("DDIM") and line.endswith(("not built", "no file")) for line in lines)
        assert len(lines) == 1 + len(GROUPS)

    def test_wrong_number(self, golden_data: Path, tmp_path: Path, capsys):
        arrays = dict(np.load(golden_data / "gd_linear.npz", allow_pickle=False))
        arrays["alphas"][500] += 1e-10
        np.savez(tmp_path / "gd_linear.npz", **arrays)
        assert golden.main([str(tmp_path)]) == 1
        out = capsys.readouterr().out
        assert "FAIL" in out
        assert "linear alphas" in out

    def refused(self, folder: Path, capsys) -> str:
        assert golden.main([str(folder)]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1
        return lines[0]

    def test_no_folder(self, tmp_path: Path, capsys):
        assert "not a folder" in self.refused(tmp_path / "nothing", capsys)

    def test_empty_folder(self, tmp_path: Path, capsys):
        assert "no golden file" in self.refused(tmp_path, capsys)

    @pytest.mark.parametrize("content", [b"", b"not a zip\nfile", b"PK\x03\x04 cut off"])
    def test_unreadable_file(self, content: bytes, tmp_path: Path, capsys):
        (tmp_path / "gd_linear.npz").write_bytes(content)
        assert "gd_linear.npz" in self.refused(tmp_path, capsys)

    def test_truncated_file(self, golden_data: Path, tmp_path: Path, capsys):
        content = (golden_data / "loss.npz").read_bytes()
        (tmp_path / "loss.npz").write_bytes(content[: len(content) // 2])
        assert "loss.npz" in self.refused(tmp_path, capsys)

    def test_pickle_is_not_loaded(self, tmp_path: Path, capsys):
        np.savez(tmp_path / "gd_linear.npz", betas=np.asarray([{"a": 1}], dtype=object))
        assert "gd_linear.npz" in self.refused(tmp_path, capsys)

    def test_missing_array(self, tmp_path: Path, capsys):
        np.savez(tmp_path / "conv_transpose.npz", x=np.zeros((1, 2, 2, 3), np.float32))
        assert "kernel" in self.refused(tmp_path, capsys)

    def test_wrong_shape(self, golden_data: Path, tmp_path: Path, capsys):
        arrays = dict(np.load(golden_data / "conv_transpose.npz", allow_pickle=False))
        np.savez(tmp_path / "conv_transpose.npz", **arrays | {"out": arrays["out"][:1]})
        assert "shape" in self.refused(tmp_path, capsys)
        np.savez(tmp_path / "conv_transpose.npz", **arrays | {"x": arrays["x"][..., :3]})
        assert "patch head" in self.refused(tmp_path, capsys)

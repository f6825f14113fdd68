"""Evaluators: each builds a function `(model, key) -> Report`, which does not log anything itself."""

from umd_eqx.eval.accuracy import Accuracy as Accuracy
from umd_eqx.eval.base import AbstractEvaluator as AbstractEvaluator
from umd_eqx.eval.base import EvalContext as EvalContext
from umd_eqx.eval.base import Evaluate as Evaluate
from umd_eqx.eval.denoising import Denoising as Denoising
from umd_eqx.eval.features import extract as extract
from umd_eqx.eval.fewshot import FewShot as FewShot
from umd_eqx.eval.generation import Generation as Generation
from umd_eqx.eval.linear_probe import ProbeAccuracy as ProbeAccuracy
from umd_eqx.eval.reconstruction import Reconstruction as Reconstruction
from umd_eqx.eval.tokenizer_quality import TokenizerQuality as TokenizerQuality

"""Weights, inputs and threads for the PyTorch baseline of the speed benchmark."""
# pyright: reportMissingImports=false
# Types can only be checked where PyTorch is installed.

import os
import re

import numpy as np
import torch
from flax_baseline import Inputs
from torch import Tensor
from torch_baseline import AutoEncoder, Draw, Size, Trainer

from umd_eqx import models
from umd_eqx.core.tensors import named_leaves
from umd_eqx.models import ModelConfig
from umd_eqx.recipes.build import Built

# Pattern and replacement pairs that map PyTorch parameter names to ours, applied in this order.
RENAMED = (
    (r"^time\.", "condition.time."),
    (r"^modulation\.", "head.modulation."),
    (r"^head_bias$", "head.bias"),
    (r"blocks\.\d+\.modulation", "conditioning.layers"),
    (r"\.project\.", ".conditioning.project."),
    (r"blocks\.\d+", "blocks"),
    (r"(norm\d?)\.weight$", r"\1.scale"),
    (r"weight$", "kernel"),
)


def load(network: AutoEncoder, model: models.AutoEncoder) -> None:
    """Copies the parameters of `model`, which has stacked blocks and (inputs, outputs) kernels, to `network`.

    Raises `KeyError` for a parameter that is missing in `model`, `ValueError` for one that is missing in `network`, and
    `RuntimeError` for a shape mismatch.
    """
    arrays = named_leaves(model)
    state, rest = {}, set(arrays)
    for name in network.state_dict():
        ours = name
        for pattern, replacement in RENAMED:
            ours = re.sub(pattern, replacement, ours)
        array = torch.from_numpy(np.array(arrays[ours]))
        if layer := re.search(r"\.blocks\.(\d+)\.", name):
            array = array[int(layer[1])]
        state[name] = array.T if ours.endswith("kernel") else array
        rest.discard(ours)
    if rest:
        raise ValueError(f"the PyTorch network has no {', '.join(sorted(rest))}")
    network.load_state_dict(state)


def trainer(system: str, built: Built, model: models.AutoEncoder) -> Trainer:
    """Returns the PyTorch trainer for a built configuration, with the weights of `model`."""
    config, optim = built.config.model, built.config.optim
    assert isinstance(config, ModelConfig)
    encoder, decoder, patch = config.sizes()
    size, _, channels = model.image_shape
    adaln = config.conditioning == "adaln"
    tokens = len(model.class_tokens)
    network = AutoEncoder(Size(*encoder), Size(*decoder), patch, size, channels, tokens, adaln)
    load(network, model)
    peak = optim.lr * (1.0 if optim.lr_batch_size is None else built.config.data.batch_size / optim.lr_batch_size)
    return Trainer(system, network, peak, built.warmup, built.total)


def torch_inputs(inputs: Inputs) -> tuple[Tensor, Draw]:
    """Converts the inputs of the Flax baseline to PyTorch; both order noised images first."""
    image, t, eps = (torch.from_numpy(np.array(x)) for x in (inputs.image, inputs.t_index, inputs.eps))
    order = np.argsort(np.concatenate([inputs.u_noisy, inputs.u_clean]), axis=1, kind="stable")
    return image, Draw(t.long() + 1, eps, torch.from_numpy(order))


def use_all_cores() -> int:
    """Sets the number of PyTorch threads to the cores available to this process, as JAX does, and returns it."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    torch.set_num_threads(cores)
    return cores

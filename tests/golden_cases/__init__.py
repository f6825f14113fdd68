"""The golden groups, in the order of the tolerance table of tests/golden_data/README.md."""

from golden_cases import evaluation, generation, network, optimiser, sampling, training

GROUPS = network.GROUPS + training.GROUPS + optimiser.GROUPS + evaluation.GROUPS + (sampling.GROUP,) + generation.GROUPS

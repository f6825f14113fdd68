"""The golden groups, in the order of the tolerance table of tests/golden_data/README.md."""

from golden_cases import evaluation, network, optimiser, training

GROUPS = network.GROUPS + training.GROUPS + optimiser.GROUPS + evaluation.GROUPS

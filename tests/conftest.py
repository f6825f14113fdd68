"""Environment of all tests, set before JAX and the package are imported."""

# ruff: noqa: E402
import gc
import importlib.metadata
import os

os.environ["UMD_EQX_TYPECHECK"] = "1"
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile much and compute little: a training step compiles in a sixth of the time so. The subprocesses that a
# test starts inherit it. Set the first to 0 to test what users run.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
FLAGS = {"--xla_force_host_platform_device_count": "8"}
if importlib.metadata.version("jaxlib").startswith("0.10."):  # a flag that XLA no longer knows ends the process
    FLAGS["--xla_cpu_use_fusion_emitters"] = "false"
GIVEN = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = " ".join([GIVEN, *(f"{flag}={value}" for flag, value in FLAGS.items() if flag not in GIVEN)])

from collections.abc import Callable, Iterator
from pathlib import Path

import equinox as eqx
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from umd_eqx.models import AutoEncoder, ModelConfig

hypothesis.settings.register_profile("fast", deadline=None, max_examples=15, derandomize=True, database=None)
hypothesis.settings.load_profile("fast")

TESTS = Path(__file__).parent

# Where no type is promoted by chance: everything that does not call optax, which is not clean itself
# (`beta ** count` of a float and an int32).
FORMULAS = ("core/test_masking.py", "core/test_paths.py", "core/test_tables.py")
STRICT_DTYPES = (*FORMULAS, "sampling/test_guidance.py", "models", "objectives")
# Where no array is broadcast over an axis that it does not have. The network adds biases (d) to tokens (n, d).
STRICT_RANKS = (*FORMULAS, "objectives")


@pytest.fixture(autouse=True, scope="module")
def strict_arithmetic(request: pytest.FixtureRequest) -> Iterator[None]:
    """Makes implicit promotion an error in the tests of the mathematics."""
    here = request.path.relative_to(TESTS)
    dtypes = "strict" if any(here.is_relative_to(place) for place in STRICT_DTYPES) else "standard"
    ranks = "raise" if any(here.is_relative_to(place) for place in STRICT_RANKS) else "allow"
    with jax.numpy_dtype_promotion(dtypes), jax.numpy_rank_promotion(ranks):
        yield


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps() -> Iterator[None]:
    """Lets go of compiled programs before there are too many.

    Each takes several memory maps, of which Linux gives a process 65,530; LLVM does not survive the one after.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 15_000:
        eqx.clear_caches()
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def golden_data() -> Path:
    """The numbers of the reference."""
    return TESTS / "golden_data"


@pytest.fixture(scope="session")
def random_model() -> Callable[..., AutoEncoder]:
    """`random_model(size=8, channels=3, num_classes=5, seed=0, **config)`: a network in which nothing is silent.

    A fresh network would hide mistakes: its modulation is zero, so that all its blocks are the identity. This one is
    filled with random numbers, kernels by their fan so that nothing explodes; and it costs no compilation.
    """

    def make(size: int = 8, channels: int = 3, num_classes: int = 5, seed: int = 0, **config) -> AutoEncoder:
        config = ModelConfig(**{"variant": "mu/4", **config})
        build = eqx.Partial(config.build, size, channels, num_classes)
        shapes = eqx.filter_eval_shape(lambda key: build(key=key), jax.random.key(0))
        rng = np.random.default_rng(seed)

        def fill(path: tuple, leaf: jax.ShapeDtypeStruct) -> jax.Array:
            name = jax.tree_util.keystr(path[-1:])
            std = leaf.shape[-2] ** -0.5 if name == ".kernel" else 0.2
            return jnp.asarray(rng.normal(float(name == ".scale"), std, leaf.shape), leaf.dtype)

        arrays, static = eqx.partition(shapes, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))
        return eqx.combine(jax.tree_util.tree_map_with_path(fill, arrays), static)

    return make

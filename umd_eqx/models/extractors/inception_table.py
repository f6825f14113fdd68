"""The layers of Inception-v3 as a table: convolutions and poolings in order, with their published names.

TensorFlow's graph of 2015-12-05 (Szegedy et al. 2016, section 6), with the names of its ports to PyTorch.
"""

from collections.abc import Iterator
from typing import Literal, NamedTuple

FEATURES = 2048
CLASSES = 1008
"""The number of classes of the graph, although ImageNet has 1000."""


class Conv(NamedTuple):
    """A convolution with batch norm and ReLU. With `padded`, a stride of 1 preserves the size."""

    name: str
    outputs: int
    rows: int = 1
    columns: int = 1
    stride: int = 1
    padded: bool = True


class Pool(NamedTuple):
    """A pooling over 3 x 3, padded to preserve the size with stride 1 and without padding with stride 2."""

    kind: Literal["average", "max"]
    stride: int = 1


Step = Conv | Pool | tuple[Conv, ...]
"""One layer of a branch. Several convolutions in a step share their input; their outputs are concatenated."""
Branch = tuple[Step, ...]


def side_by_side(step: Step) -> tuple[Conv, ...]:
    """Returns the convolutions of a step: none, one or several."""
    if isinstance(step, Pool):
        return ()
    return (step,) if isinstance(step, Conv) else step


class Mixed(NamedTuple):
    """A block of branches that share their input; their outputs are concatenated along the channels, in this order."""

    name: str
    branches: tuple[Branch, ...]


def _mixed_35(name: str, pooled: int) -> Mixed:
    return Mixed(
        name,
        (
            (Conv("branch1x1", 64),),
            (Conv("branch5x5_1", 48), Conv("branch5x5_2", 64, 5, 5)),
            (Conv("branch3x3dbl_1", 64), Conv("branch3x3dbl_2", 96, 3, 3), Conv("branch3x3dbl_3", 96, 3, 3)),
            (Pool("average"), Conv("branch_pool", pooled)),
        ),
    )


def _mixed_17(name: str, width: int) -> Mixed:
    return Mixed(
        name,
        (
            (Conv("branch1x1", 192),),
            (Conv("branch7x7_1", width), Conv("branch7x7_2", width, 1, 7), Conv("branch7x7_3", 192, 7, 1)),
            (
                Conv("branch7x7dbl_1", width),
                Conv("branch7x7dbl_2", width, 7, 1),
                Conv("branch7x7dbl_3", width, 1, 7),
                Conv("branch7x7dbl_4", width, 7, 1),
                Conv("branch7x7dbl_5", 192, 1, 7),
            ),
            (Pool("average"), Conv("branch_pool", 192)),
        ),
    )


def _mixed_8(name: str, pool: Pool) -> Mixed:
    def fork(branch: str) -> tuple[Conv, Conv]:
        return Conv(f"{branch}a", 384, 1, 3), Conv(f"{branch}b", 384, 3, 1)

    return Mixed(
        name,
        (
            (Conv("branch1x1", 320),),
            (Conv("branch3x3_1", 384), fork("branch3x3_2")),
            (Conv("branch3x3dbl_1", 448), Conv("branch3x3dbl_2", 384, 3, 3), fork("branch3x3dbl_3")),
            (pool, Conv("branch_pool", 192)),
        ),
    )


STEM: Branch = (
    Conv("Conv2d_1a_3x3", 32, 3, 3, stride=2, padded=False),
    Conv("Conv2d_2a_3x3", 32, 3, 3, padded=False),
    Conv("Conv2d_2b_3x3", 64, 3, 3),
    Pool("max", stride=2),
    Conv("Conv2d_3b_1x1", 80),
    Conv("Conv2d_4a_3x3", 192, 3, 3, padded=False),
    Pool("max", stride=2),
)
"""299 x 299 x 3 to 35 x 35 x 192."""

BLOCKS = (
    _mixed_35("Mixed_5b", 32),
    _mixed_35("Mixed_5c", 64),
    _mixed_35("Mixed_5d", 64),
    Mixed(
        "Mixed_6a",
        (
            (Conv("branch3x3", 384, 3, 3, stride=2, padded=False),),
            (
                Conv("branch3x3dbl_1", 64),
                Conv("branch3x3dbl_2", 96, 3, 3),
                Conv("branch3x3dbl_3", 96, 3, 3, stride=2, padded=False),
            ),
            (Pool("max", stride=2),),
        ),
    ),
    _mixed_17("Mixed_6b", 128),
    _mixed_17("Mixed_6c", 160),
    _mixed_17("Mixed_6d", 160),
    _mixed_17("Mixed_6e", 192),
    Mixed(
        "Mixed_7a",
        (
            (Conv("branch3x3_1", 192), Conv("branch3x3_2", 320, 3, 3, stride=2, padded=False)),
            (
                Conv("branch7x7x3_1", 192),
                Conv("branch7x7x3_2", 192, 1, 7),
                Conv("branch7x7x3_3", 192, 7, 1),
                Conv("branch7x7x3_4", 192, 3, 3, stride=2, padded=False),
            ),
            (Pool("max", stride=2),),
        ),
    ),
    _mixed_8("Mixed_7b", Pool("average")),
    # The published graph uses max pooling here, probably by mistake; without it, a distance would not be FID.
    _mixed_8("Mixed_7c", Pool("max")),
)
"""35 x 35 x 192 to 8 x 8 x 2048."""

NORM = ("scale", "bias", "mean", "var")
"""The arrays of a batch norm, each of shape (outputs)."""


def parameter_shapes() -> dict[str, tuple[int, ...]]:
    """Returns the shape of every array of the network by name.

    A convolution `Mixed_5b.branch1x1` has a `.kernel` (rows, columns, inputs, outputs) and the four of `NORM`; `fc` has
    a `.kernel` (2048, 1008) and a `.bias`.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    for name, conv, inputs in convolutions():
        shapes[f"{name}.kernel"] = (conv.rows, conv.columns, inputs, conv.outputs)
        shapes |= {f"{name}.{field}": (conv.outputs,) for field in NORM}
    return shapes | {"fc.kernel": (FEATURES, CLASSES), "fc.bias": (CLASSES,)}


def convolutions() -> Iterator[tuple[str, Conv, int]]:
    """Yields each convolution of the table with its full name and its number of input channels."""
    yield from _along(STEM, "", 3)
    channels = _width(STEM, 3)
    for block in BLOCKS:
        for branch in block.branches:
            yield from _along(branch, f"{block.name}.", channels)
        channels = sum(_width(branch, channels) for branch in block.branches)


def _along(branch: Branch, prefix: str, channels: int) -> Iterator[tuple[str, Conv, int]]:
    for i, step in enumerate(branch):
        for conv in side_by_side(step):
            yield prefix + conv.name, conv, _width(branch[:i], channels)


def _width(branch: Branch, channels: int) -> int:
    """Returns the output channels of a branch: those of its last convolutions, or `channels` if it only pools."""
    for step in branch:
        channels = sum(conv.outputs for conv in side_by_side(step)) or channels
    return channels

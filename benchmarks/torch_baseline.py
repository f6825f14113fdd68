"""The PyTorch baseline of the speed benchmark: the published systems in eager mode.

It follows the description of the method (arXiv 2406.17688) in float32, without compilation or checkpointing. Noised and
clean images of UMD have different numbers of visible patches, so each group takes a separate forward pass. Needs
`pip install -e ".[parity]"`; `torch_weights.py` loads the weights of the network of this package.

    network = AutoEncoder(encoder=Size(768, 12, 12), decoder=Size(768, 4, 12), patch=4, image_size=64)
    trainer = Trainer("umd", network, lr=6e-4, warmup=50_000, total=1_000_000)
    loss = trainer.step(images)  # the first half is noised

Shapes: b images of h x w x c; n patches of p x p pixels, k of them visible; s tokens; width d.
"""
# pyright: reportMissingImports=false
# Types can only be checked where PyTorch is installed.

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

DIFFUSION_STEPS = 1000


class Size(NamedTuple):
    """Width, depth and heads of a stack."""

    width: int
    depth: int
    heads: int


class System(NamedTuple):
    """The fraction of a batch that is reconstructed without noise, and the mask ratios of noised and clean images."""

    no_noise: float
    mask_noisy: float
    mask_clean: float


class Draw(NamedTuple):
    """The random numbers of a training step; the first b1 images of the batch are noised."""

    t: Tensor  # (b1,) diffusion steps, 1 .. 1000
    eps: Tensor  # (b1, h, w, c) standard normal
    order: Tensor  # (b, n) permutations of the patches; the first ones stay visible


SYSTEMS = {
    "umd": System(0.5, 0.375, 0.75),
    "mae": System(1.0, 0.0, 0.75),
    "dit": System(0.0, 0.0, 0.0),
    "maskdit": System(0.0, 0.5, 0.0),
}


class Mlp(nn.Module):
    """Two linear layers with an activation between them."""

    def __init__(self, width: int, hidden: int, activation: nn.Module):
        super().__init__()
        self.up, self.activation, self.down = nn.Linear(width, hidden), activation, nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., d) -> (..., d)."""
        return self.down(self.activation(self.up(x)))


class Attention(nn.Module):
    """Multi-head self-attention."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(b, s, d) -> (b, s, d)."""
        b, s, d = x.shape
        q, k, v = self.qkv(x).view(b, s, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (b, heads, s, d / heads)
        x = F.scaled_dot_product_attention(q, k, v)
        return self.out(x.transpose(1, 2).reshape(b, s, d))


class Block(nn.Module):
    """A pre-norm transformer block, conditioned by AdaLN-zero or by a token."""

    def __init__(self, size: Size, condition: int, adaln: bool):
        super().__init__()
        self.norm1, self.norm2 = (nn.LayerNorm(size.width, eps=1e-6) for _ in range(2))
        self.attention = Attention(size.width, size.heads)
        self.mlp = Mlp(size.width, 4 * size.width, nn.GELU("tanh"))
        self.modulation = nn.Linear(condition, 6 * size.width) if adaln else None

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(b, s, d) tokens and (b, condition) -> (b, s, d)."""
        if self.modulation is None:  # the conditioning is prepended as a token in every block and dropped after it
            x = torch.cat([c[:, None], x], dim=1)  # (b, 1 + s, d)
            x = x + self.attention(self.norm1(x))
            x = x + self.mlp(self.norm2(x))
            return x[:, 1:]
        six = self.modulation(F.silu(c))[:, None]  # (b, 1, 6 d)
        shift_a, scale_a, gate_a, shift_m, scale_m, gate_m = six.chunk(6, dim=-1)
        x = x + gate_a * self.attention(self.norm1(x) * (1 + scale_a) + shift_a)
        return x + gate_m * self.mlp(self.norm2(x) * (1 + scale_m) + shift_m)


class Stack(nn.Module):
    """Transformer blocks followed by a LayerNorm."""

    def __init__(self, size: Size, condition: int, adaln: bool):
        super().__init__()
        # A conditioning token needs the width of the stack; AdaLN accepts any width.
        self.project = nn.Identity() if adaln or condition == size.width else nn.Linear(condition, size.width)
        self.blocks = nn.ModuleList(Block(size, condition, adaln) for _ in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        """(b, s, d), (b, condition) -> (b, s, d)."""
        c = self.project(c)
        for block in self.blocks:
            x = block(x, c)
        return self.norm(x)


class AutoEncoder(nn.Module):
    """The network that all systems share, without class labels, initialised with the defaults of PyTorch."""

    def __init__(
        self,
        encoder: Size,
        decoder: Size,
        patch: int,
        image_size: int,
        channels: int = 3,
        class_tokens: int = 4,
        adaln: bool = True,
    ):
        super().__init__()
        d, d_decoder, n = encoder.width, decoder.width, (image_size // patch) ** 2
        self.patch, self.num_patches, self.channels = patch, n, channels
        self.embed = nn.Linear(patch * patch * channels, d)
        self.positions = nn.Parameter(torch.zeros(n, d))
        self.class_tokens = nn.Parameter(torch.zeros(class_tokens, d))
        self.time = Mlp(d, 2 * d, nn.SiLU())
        self.encoder = Stack(encoder, d, adaln)
        self.bridge = nn.Identity() if d == d_decoder else nn.Linear(d, d_decoder)
        self.mask_token = nn.Parameter(torch.zeros(d_decoder))
        self.decoder_positions = nn.Parameter(torch.zeros(n, d_decoder))
        self.decoder = Stack(decoder, d, adaln)
        self.modulation = nn.Linear(d, 2 * d_decoder) if adaln else None
        self.head = nn.Linear(d_decoder, patch * patch * 2 * channels, bias=False)
        self.head_bias = nn.Parameter(torch.zeros(2 * channels))  # one bias per channel, shared by all pixels

    def forward(self, images: Tensor, t: Tensor, order: Tensor, kept: int) -> Tensor:
        """Returns the (b, n, p * p, 2 c) predictions [x0, eps] of the pixels of each patch.

        Takes (b, h, w, c) images, (b,) diffusion steps (0 = clean) and (b, n) permutations of the patches, the first
        `kept` of which are visible.
        """
        b, n, d, k = len(images), self.num_patches, self.positions.shape[1], len(self.class_tokens)
        c = self.time(sinusoid(t, d))  # (b, d)
        x = self.embed(patchify(images, self.patch).flatten(2)) + self.positions  # (b, n, d)
        if kept < n:
            x = x.gather(1, order[:, :kept, None].expand(-1, -1, d))  # (b, kept, d)
        x = self.encoder(torch.cat([self.class_tokens.expand(b, -1, -1), x], dim=1), c)  # (b, k + kept, d)

        # In the decoder, the mean of the class tokens replaces them, and a mask token replaces each hidden patch.
        x = self.bridge(torch.cat([x[:, :k].mean(dim=1, keepdim=True), x[:, k:]], dim=1))  # (b, 1 + kept, d_decoder)
        summary, x = x[:, :1], x[:, 1:]
        if kept < n:
            x = torch.cat([x, self.mask_token.expand(b, n - kept, -1)], dim=1)
            x = x.gather(1, order.argsort(dim=1)[..., None].expand_as(x))  # (b, n, d_decoder), in image order
        x = self.decoder(torch.cat([summary, x + self.decoder_positions], dim=1), c)[:, 1:]

        if self.modulation is not None:
            shift, scale = self.modulation(F.silu(c))[:, None].chunk(2, dim=-1)
            x = x * (1 + scale) + shift
        return self.head(x).view(b, n, self.patch**2, -1) + self.head_bias


def patchify(images: Tensor, patch: int) -> Tensor:
    """(b, h, w, c) -> (b, n, p * p, c)."""
    b, h, w, c = images.shape
    x = images.view(b, h // patch, patch, w // patch, patch, c)
    return x.transpose(2, 3).reshape(b, -1, patch * patch, c)


def sinusoid(t: Tensor, width: int) -> Tensor:
    """Returns the sinusoidal embedding of diffusion steps, sines first: (b,) -> (b, width)."""
    half = width // 2
    angles = t.float()[:, None] * torch.exp(-math.log(10000) / (half - 1) * torch.arange(half))
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def cosine_levels() -> tuple[Tensor, Tensor]:
    """Returns the signal and noise levels of the clipped cosine schedule in float32; row 0 is diffusion step 1."""
    u = np.arange(DIFFUSION_STEPS + 1) / DIFFUSION_STEPS
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    abar = np.cumprod(1 - np.minimum(1 - f[1:] / f[:-1], 0.999))
    return torch.from_numpy(np.sqrt(abar)).float(), torch.from_numpy(np.sqrt(1 - abar)).float()


class Trainer:
    """A network with its losses, optimiser and schedule.

    The optimiser is PyTorch's fused AdamW with the published hyper-parameters; its first moment is stored in float32
    instead of bfloat16. As in the published pre-training, there is no moving average of the weights.
    """

    def __init__(self, system: str, network: AutoEncoder, lr: float, warmup: int, total: int):
        self.system, self.network = SYSTEMS[system], network
        self.signal, self.noise = cosine_levels()
        excluded = {n: n.endswith("bias") or n in ("class_tokens", "mask_token") for n, _ in network.named_parameters()}
        groups = [
            {"params": [p for n, p in network.named_parameters() if not excluded[n]], "weight_decay": 0.05},
            {"params": [p for n, p in network.named_parameters() if excluded[n]], "weight_decay": 0.0},
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.95), eps=1e-8, fused=True)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, warmup_cosine(warmup, total))

    def num_noisy(self, batch: int) -> int:
        """Returns the number of noised images in a batch."""
        return batch - int(batch * self.system.no_noise)

    def draw(self, images: Tensor) -> Draw:
        """Draws the random numbers of a training step."""
        noisy = self.num_noisy(len(images))
        t = torch.randint(1, DIFFUSION_STEPS + 1, (noisy,))
        order = torch.rand(len(images), self.network.num_patches).argsort(dim=1)
        return Draw(t, torch.randn_like(images[:noisy]), order)

    def loss(self, images: Tensor, draw: Draw) -> Tensor:
        """Returns the mean loss: denoising for noised images, reconstruction for clean images."""
        b, b1 = len(images), len(draw.t)
        total = images.new_zeros(())
        if b1 > 0:
            total = total + self.denoising(images[:b1], draw.t, draw.eps, draw.order[:b1]) * (b1 / b)
        if b1 < b:
            total = total + self.reconstruction(images[b1:], draw.order[b1:]) * ((b - b1) / b)
        return total

    def denoising(self, images: Tensor, t: Tensor, eps: Tensor, order: Tensor) -> Tensor:
        """Returns the loss of eps on visible and x0 on hidden patches, or of both on all patches without a mask."""
        signal, noise = (level[t - 1][:, None, None, None] for level in (self.signal, self.noise))
        kept = int(order.shape[1] * (1 - self.system.mask_noisy))
        x0_error, eps_error = self.errors(signal * images + noise * eps, t, order, kept, images, eps)
        if kept == order.shape[1]:
            return (x0_error.mean() + eps_error.mean()) / 2
        hidden = hidden_patches(order, kept)
        visible = 1 - hidden
        return ((x0_error * hidden).sum() / hidden.sum() + (eps_error * visible).sum() / visible.sum()) / 2

    def reconstruction(self, images: Tensor, order: Tensor) -> Tensor:
        """Returns the loss of x0 on the hidden patches of clean images."""
        kept = int(order.shape[1] * (1 - self.system.mask_clean))
        (x0_error,) = self.errors(images, torch.zeros(len(images)), order, kept, images)
        hidden = hidden_patches(order, kept)
        return (x0_error * hidden).sum() / hidden.sum()

    def errors(self, inputs: Tensor, t: Tensor, order: Tensor, kept: int, *targets: Tensor) -> list[Tensor]:
        """Returns the (b, n) mean squared errors of each patch, of the predictions (x0, then eps) for `targets`."""
        predictions = self.network(inputs, t, order, kept).split(self.network.channels, dim=-1)
        patch = self.network.patch
        return [(p - patchify(y, patch)).square().mean(dim=(2, 3)) for p, y in zip(predictions, targets, strict=False)]

    def update(self) -> Tensor:
        """Clips the gradients, updates the weights and the schedule, and returns the gradient norm before clipping."""
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.schedule.step()
        self.optimiser.zero_grad()
        return norm

    def step(self, images: Tensor) -> float:
        """Runs a training step on (b, h, w, c) images in [-1, 1], noised images first, and returns the loss."""
        loss = self.loss(images, self.draw(images))
        loss.backward()
        self.update()
        return loss.item()


def warmup_cosine(warmup: int, total: int) -> Callable[[int], float]:
    """Returns the learning-rate factor: linear from 0 to 1 over `warmup` steps, then cosine decay to 0 at `total`."""

    def factor(step: int) -> float:
        if step < warmup:
            return step / warmup
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warmup) / (total - warmup))))

    return factor


def hidden_patches(order: Tensor, kept: int) -> Tensor:
    """Returns (b, n), 1 where a patch is hidden, for (b, n) permutations whose first `kept` patches are visible."""
    return torch.ones(order.shape).scatter(1, order[:, :kept], 0.0)

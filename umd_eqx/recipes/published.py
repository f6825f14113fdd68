"""The published results, as facts: "Unified Auto-Encoding with Masked Diffusion" (arXiv 2406.17688).

Every system was trained for 800 epochs unless stated otherwise, and fine-tuned for 50.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Published:
    """A published system and its results; None where none was published.

    - `system`: its name, with the size of the images.
    - `preset`, `finetuned`: the presets of this package that train it, and fine-tune it with labels.
    - `epochs`, `finetuning_epochs`: how long.
    - `probe`: top-1 accuracy on ImageNet, in percent, of a 100-shot ridge probe of the class tokens.
    - `fid`, `inception_score`: of 10,240 samples in 125 steps (the protocol `umd10k`), after fine-tuning if there is
      such a preset.
    """

    system: str
    preset: str
    finetuned: str | None
    probe: float | None
    fid: float | None
    inception_score: float | None
    epochs: float = 800.0
    finetuning_epochs: float = 50.0


PUBLISHED = (
    Published("UMD-B/4 64 px", "umd-b4-in64", "umd-b4-in64-ft", 31.8, 19.8, 46.9),
    Published("MAE-B/4 64 px", "mae-b4-in64", "mae-b4-in64-ft", 36.6, 26.8, 18.5),
    Published("DiT-B/4 64 px", "dit-b4-in64", "dit-b4-in64-ft", 25.6, 18.9, 46.9),
    Published("MaskDiT-B/4 64 px", "maskdit-b4-in64", "maskdit-b4-in64-ft", 26.3, 19.0, 43.4),
    Published("Latent-UMD-L/2 256 px", "latent-umd-l2-in256", "latent-umd-l2-in256-ft", 54.4, 3.96, 212.6),
    Published("MAE-L/16 256 px", "mae-l16-in256", None, 51.1, None, None),
    Published("Latent-DiT-L/2 256 px, from scratch", "latent-dit-l2-in256", None, None, 4.31, 274.5, epochs=400.0),
)
"""The rows of the paper's tables that this package has presets for."""

"""Images, a tokenizer and settings whose latents are known."""

from eval.fakes import noise
from known_tokenizers import Rearranged

from umd_eqx.latents.store import Settings, source_hash

SOURCE = noise(22)
VIEWS = 3
TOKENIZER = Rearranged.init(shift=0.1, scale=1.5, logvar=-2.0)


def settings(**fields) -> Settings:
    usual = {
        "name": "fake",
        "split": "train",
        "source": source_hash(SOURCE),
        "tokenizer": "0123",
        "shift": TOKENIZER.shift,
        "scale": TOKENIZER.scale,
        "size": 8,
        "area_min": 50.0,
        "flip": True,
        "seed": 3,
        "views": VIEWS,
        "shape": (4, 4, 4),
        "mode_only": False,
        "dtype": "float32",
        "images": 22,
        "per_shard": 10,
    }
    return Settings(**(usual | fields))

"""Run directories as the package's own writers leave them, without training."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from umd_eqx.core.files import save_json
from umd_eqx.core.types import DataSpec
from umd_eqx.recipes.config import Config
from umd_eqx.recipes.pretrain import FASHION_MNIST, umd
from umd_eqx.report import MetricsFile, save_pictures
from umd_eqx.report.results import write_report
from umd_eqx.runs.recorded import recorded_run
from umd_eqx.runs.workspace import environment, record


def fabricate(
    folder: Path,
    config: Config,
    finals: Mapping[str, float],
    *,
    preset: str = "umd",
    recipe: Config | None = None,
    steps: int = 100,
    until: int | None = None,
    spec: DataSpec = FASHION_MNIST,
    pictures: bool = False,
    **facts: Any,
) -> Path:
    """A run of `steps` steps, at step `until`: the loss at every tenth step, and the metrics at a half and at the end.

    At half they are 10 below their `finals`; 0.5 s pass per step.
    """
    folder.mkdir(parents=True)
    record(folder, config, preset, recipe or umd())
    given = {"steps": steps, "parameters": 1000, "flops_per_step": 7, "data": spec._asdict()}
    save_json(folder / "environment.json", environment(preset, given | facts))
    until = steps if until is None else until
    with MetricsFile.open(folder / "metrics.jsonl") as metrics:
        for step in range(10, until + 1, 10):
            row = {"train/loss": 1.0 + config.seed + 1 / step, "throughput/wall_seconds": step / 2}
            if finals and step in (steps // 2, steps):
                row |= {name: value - 10 * (step < steps) for name, value in finals.items()}
                if pictures:
                    picture = np.full((4, 8, 3), config.seed + step // 10, np.uint8)
                    save_pictures(folder, step, {"reconstruction/pictures": picture})
            metrics.append(step, row)
    write_report(recorded_run(folder))
    return folder

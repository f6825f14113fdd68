"""`experiments/evaluate.py`: the metrics of generated images, by a named protocol, with everything they depend on.

Or, with `--benchmark probe`, those of the representation: `umd_eqx.commands.probe`.
"""

import dataclasses
import sys
import time
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Float, Int

from umd_eqx.commands.leaves import parse
from umd_eqx.commands.probe import measure_probe
from umd_eqx.commands.results import keep, open_data, tag
from umd_eqx.commands.sampling import Flags, SamplingFlags, Types, sampling_kinds
from umd_eqx.commands.training import flag_value
from umd_eqx.core.errors import BadInput, require_writable
from umd_eqx.core.sharding import make_mesh, round_up_to_devices
from umd_eqx.eval import EvalContext
from umd_eqx.eval.extractors import ExtractorName, choose_extractor, unfamiliar
from umd_eqx.eval.generation import PROTOCOLS, ProtocolName
from umd_eqx.eval.generation_metrics import ReferenceStatistics, measure_generation
from umd_eqx.eval.measure import metric_names
from umd_eqx.eval.protocol import Protocol, generation_result, scale
from umd_eqx.recipes.dump import dump
from umd_eqx.report import Terminal
from umd_eqx.runs.pretrained import Pretrained
from umd_eqx.sampling import sample as sample_images


@dataclasses.dataclass(frozen=True)
class Evaluate:
    """Sample as a protocol says, and compare with real images."""

    benchmark: Literal["generation", "probe"] = "generation"
    """What is measured: generated images, or the representation (`--benchmark probe --help` has the flags)."""
    flags: Flags = dataclasses.field(default_factory=SamplingFlags)
    protocol: ProtocolName = "umd10k"
    """The paper's (10,240 samples, validation statistics) or the field's (50,000, training statistics)."""
    samples: int | None = None
    """How many samples, if not as many as the protocol says; the result's name then tells."""
    data_dir: str | None = None
    """Where the real images are. None: as in the run, $TFDS_DATA_DIR, or what comes with the package."""
    extractor: ExtractorName = "auto"
    """What features are compared in. auto: Inception where its weights are found, else what comes with the package."""
    inception_weights: str | None = None
    """A safetensors file (experiments/convert_inception.py makes it). None: where they are usually kept."""
    floor: bool = True
    """Measure as many real training images, too: what a perfect generator would come to."""
    json: str | None = None
    """A file for the result. It is kept in the run directory, too, in eval/."""


def evaluate(words: list[str], types: Types | None = None) -> int:
    """Runs the evaluation command; gives its exit code.

    `types` are the reader's own, by the names that flags give them.

    **Raises:** `BadInput` naming the flag at fault.
    """
    types = types or {}
    if flag_value(words, "--benchmark") == "probe":
        return measure_probe(words, types)
    description = "Measure the images that a trained network generates."
    command = parse(Evaluate, words, sampling_kinds(types), default=Evaluate(), description=description)
    flags, protocol = command.flags, _protocol(command)
    if command.json is not None:
        require_writable("--json", command.json)
    flags.validate()
    source = flags.source(types)
    weak = flags.weaker(source, types)
    denoiser, sampler = flags.guided(source, weak)
    train, test = open_data(source, command.data_dir)
    extractor = choose_extractor(command.extractor, command.inception_weights, train.spec, port=protocol.port)
    print(flags.describe(source, types))
    warnings = flags.warnings(source)
    for warning in warnings:
        print(f"warning: {warning}", file=sys.stderr)
    mesh = make_mesh()
    began = time.perf_counter()
    with Terminal(protocol.samples, work="sampling", unit="image") as terminal:
        context = EvalContext(
            *(train, test, source.path, source.data.size, round_up_to_devices(source.data.eval_batch_size, mesh), mesh),
            tokenizer=source.tokenizer,
            say=terminal.say,
            phase=terminal.phase,
        )
        reference = ReferenceStatistics(context, protocol, extractor)
        real = reference.real
        found = {f"floor_{metric_names(extractor.name).frechet}": reference.floor()} if command.floor else {}
        terminal.phase("sampling")

        def draw(labels: Int[np.ndarray, "n"]) -> Float[np.ndarray, "n h w c"]:
            images = sample_images(
                *(denoiser, sampler, labels, jax.random.key(flags.seed)),
                batch_size=min(flags.batch_size, protocol.samples),
                mesh=context.mesh,
                progress=lambda done, _: terminal.update(done, {}),
            )
            terminal.phase("measuring")
            return images

        found |= measure_generation(draw, reference, source.model.num_classes, seed=flags.seed)
    if "not_finite" in found:
        problem = f"{found['not_finite']:.1%} of the samples are not finite"
        raise BadInput("--sampler", problem, "Use more steps, or another sampler")
    result = generation_result(
        protocol,
        real.statistics,
        extractor,
        {name: value for name, value in found.items() if name in metric_names(extractor.name)},
        sampler={"name": flags.sampler_name(types)} | dump(sampler) | {"seed": flags.seed},
        guidance=flags.guidance(source, weak),
        precision=source.config.precision,
    ).to_json()
    extra = {name: value for name, value in found.items() if name not in metric_names(extractor.name)}
    result |= {"extra": extra, "network": source.describe(), "weights": source.digest, "data": train.spec.name}
    unknown = unfamiliar(extractor.name, train.spec)
    result |= {"seconds": time.perf_counter() - began, "warnings": [*warnings, *([unknown] if unknown else [])]}
    _print(protocol, found)
    _keep(command, protocol, source, result)
    return 0


def _protocol(command: Evaluate) -> Protocol:
    protocol = PROTOCOLS[command.protocol]
    if command.samples is None:
        return protocol
    if command.samples < 10:
        raise BadInput("--samples", f"{command.samples} are too few to measure", "Use 10 or more")
    return scale(protocol, command.samples)


def _print(protocol: Protocol, found: dict[str, float]) -> None:
    width = max(map(len, found)) + 2
    print(f"\n{protocol.name}: {protocol.samples:,} samples against the {protocol.reference} images")
    for name, value in found.items():
        print(f"  {name:{width}}{value:.4f}")


def _keep(command: Evaluate, protocol: Protocol, source: Pretrained, result: dict[str, Any]) -> None:
    scale_name = f"cfg{command.flags.scale(source):g}"
    settled = {name: result[name] for name in ("sampler", "guidance", "weights", "extractor", "reference")}
    name = f"{protocol.name}-{result['sampler']['name']}-{scale_name}-{source.weights}-step{source.step}-{tag(settled)}"
    keep(result, name, command.flags.run, command.json)

"""The command-line entry points: select the command, and print a user error as one line."""

import contextlib
import functools
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from umd_eqx.commands.compare import compare_runs
from umd_eqx.commands.evaluate import evaluate
from umd_eqx.commands.export import export_weights
from umd_eqx.commands.features import write_features
from umd_eqx.commands.finetune import finetune
from umd_eqx.commands.finetune_classifier import finetune_classifier
from umd_eqx.commands.layers import probe_layers
from umd_eqx.commands.linear_probe import linear_probe
from umd_eqx.commands.pretrain import pretrain
from umd_eqx.commands.sample import sample
from umd_eqx.commands.table import tabulate_runs
from umd_eqx.commands.together import met, run_together
from umd_eqx.core.errors import BadInput, disk_trouble
from umd_eqx.recipes.dump import as_flag
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.training.guards import limit_arenas
from umd_eqx.training.signals import EXIT_INTERRUPTED, end_interrupted, ending_on_sigterm

EXIT_BAD_INPUT = 2
FIELD = r"[a-z]\w*(?:\.\w+)*"
NO_FLAG = ("config.json", "labels", "preset", "runs", "types")
"""Subjects of errors that are not set by a flag: a file, and arguments of functions."""
TRAINING = ("finetune", "finetune-classifier", "linear-probe")
"""The commands that train, and can run as several processes."""
LONGEST_WORD = 400
INTERRUPTED = "interrupted: the last checkpoint, if any, is unchanged"


def main(
    presets: Mapping[str, Preset],
    arguments: Sequence[str] | None = None,
    *,
    types: Mapping[str, type] | None = None,
) -> None:
    """Runs the pre-training command, or the command named by the first argument, and exits as `exit_with` does.

    **Arguments:**

    - `presets`: recipes by name; the first is the default. Add your own: `main({**PRETRAIN, "mine": recipe})`.
    - `arguments`: the command-line arguments, without the program name. `sample`, `finetune`, `evaluate`, `features`,
        `layers`, `linear-probe`, `finetune-classifier`, `export`, `compare` or `table` as the first argument runs that
        command, unless a preset has that name.
    - `types`: your own samplers, grids, optimisers, data sources, paths, objectives, evaluators and networks by name.
        `--sampler NAME`, `--optim NAME` and so on select them, and these commands can load runs that were trained
        with them.
    """
    types = types or {}
    commands = {
        "sample": functools.partial(sample, types=types),
        "finetune": functools.partial(finetune, types=types),
        "evaluate": functools.partial(evaluate, types=types),
        "finetune-classifier": functools.partial(finetune_classifier, types=types),
        "features": functools.partial(write_features, types=types),
        "layers": functools.partial(probe_layers, types=types),
        "linear-probe": functools.partial(linear_probe, types=types),
        "export": functools.partial(export_weights, types=types),
        "compare": functools.partial(compare_runs, types=types),
        "table": functools.partial(tabulate_runs, types=types),
    }

    def command(words: list[str]) -> int:
        if words and words[0] in commands and words[0] not in presets:
            return commands[words[0]](words[1:])
        return pretrain(words, presets, types)

    words = list(sys.argv[1:] if arguments is None else arguments)
    alone = words[:1] and words[0] in commands and words[0] not in presets and words[0] not in TRAINING
    exit_with(command, arguments, several=not alone)


def exit_with(
    command: Callable[[list[str]], int], arguments: Sequence[str] | None = None, *, several: bool = False
) -> NoReturn:
    """Runs a command and exits with the code it returns; prints bad input as a one-line error (`in_flags`).

    Exit codes: 0, success; 2, bad input or a full disk; 75, stopped by a signal with its state saved; 130,
    interrupted by Ctrl-C without saving.

    **Arguments:**

    - `command`: a function of the command-line arguments that returns an exit code.
    - `arguments`: the command-line arguments, without the program name. None: those in `sys.argv`; the command is then
        assumed to own the process, which ends immediately on Ctrl-C and SIGTERM (`umd_eqx.training.signals`).
    - `several`: whether the command can run as several processes, which then meet first (`umd_eqx.core.processes`).
        If it fails in one of them, all end with its exit code and one message.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    if arguments is None:
        limit_arenas()
    try:
        with ending_on_sigterm() if arguments is None else contextlib.nullcontext():
            peers = met(words, several=several)
            if peers is None:
                sys.exit(command(words))
            sys.exit(run_together(command, words, peers, lambda error: f"error: {in_flags(error)}"))
    except BadInput as error:
        print(f"error: {in_flags(error)}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except BrokenPipeError:  # `--help | head`: the reader closed the pipe, and the flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        if (found := disk_trouble(error)) is None:
            raise
        print(f"error: {found[1]}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:  # outside the training loop, or pressed a second time
        if arguments is None:
            end_interrupted(INTERRUPTED)
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)


def in_flags(error: BadInput) -> str:
    """Returns the message of an error with flags for the fields it names: `--data.size 28` for `` `data.size=28` ``.

    A subject that is not the name of a field, such as a path, is left as it is. The message is one line whatever was
    given: control characters are escaped, and words of more than `LONGEST_WORD` characters cut.
    """
    is_field = re.fullmatch(FIELD, error.field) and error.field not in NO_FLAG
    subject = _flag(error.field) if is_field else error.field
    text = re.sub(rf"`({FIELD})(?:=([^`]*))?`", lambda found: _flag(*found.groups()), f"{error.problem}. {error.hint}")
    shown = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in f"{subject}: {text}")
    return re.sub(rf"\S{{{LONGEST_WORD},}}", lambda found: f"{found[0][:60]}...{found[0][-20:]}", shown)


def _flag(field: str, value: str | None = None) -> str:
    *groups, name = as_flag(field).replace("_", "-").split(".")
    switch = f"no-{name}" if value == "False" else name
    flag = f"--{'.'.join([*groups, switch])}"
    return flag if value in (None, "True", "False") else f"{flag} {value}"

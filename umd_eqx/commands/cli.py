"""The command-line entry points: select the command, and print a user error as one line."""

import functools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

from umd_eqx.commands.evaluate import evaluate
from umd_eqx.commands.export import export_weights
from umd_eqx.commands.finetune import finetune
from umd_eqx.commands.pretrain import pretrain
from umd_eqx.commands.sample import sample
from umd_eqx.core.errors import BadInput
from umd_eqx.recipes.pretrain import Preset
from umd_eqx.training.signals import EXIT_INTERRUPTED, end_interrupted

EXIT_BAD_INPUT = 2
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
    - `arguments`: the command-line arguments, without the program name. `sample`, `finetune`, `evaluate` or `export` as
        the first argument runs that command, unless a preset has that name.
    - `types`: your own samplers, optimisers, grids, objectives, evaluators and networks by name. `--sampler NAME`,
        `--optim NAME` and so on select them, and these commands can load runs that were trained with them.
    """
    types = types or {}
    commands = {
        "sample": functools.partial(sample, types=types),
        "finetune": functools.partial(finetune, types=types),
        "evaluate": functools.partial(evaluate, types=types),
        "export": functools.partial(export_weights, types=types),
    }

    def command(words: list[str]) -> int:
        if words and words[0] in commands and words[0] not in presets:
            return commands[words[0]](words[1:])
        return pretrain(words, presets, types)

    exit_with(command, arguments)


def exit_with(command: Callable[[list[str]], int], arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs a command and exits with the code it returns; prints bad input as a one-line error.

    Exit codes: 0, success; 2, bad input or a full disk; 75, stopped by a signal after saving its state; 130,
    interrupted by Ctrl-C without saving.

    **Arguments:**

    - `command`: a function of the command-line arguments that returns an exit code.
    - `arguments`: the command-line arguments, without the program name. None: those in `sys.argv`; the command is then
        assumed to own the process, which ends immediately on Ctrl-C (`signals.end_interrupted`).
    """
    try:
        sys.exit(command(list(sys.argv[1:] if arguments is None else arguments)))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:  # outside the training loop, or pressed a second time
        if arguments is None:
            end_interrupted(INTERRUPTED)
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `--help | head`: the reader closed the pipe, and the flush at exit must not fail
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

"""The command line: which command the words belong to, and one line for what is wrong."""

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
INTERRUPTED = "interrupted: the last checkpoint, if there is one, is as it was"


def main(
    presets: Mapping[str, Preset],
    arguments: Sequence[str] | None = None,
    *,
    types: Mapping[str, type] | None = None,
) -> None:
    """Runs the pre-training command, or the one that the first word names, and exits, as `exit_with` says.

    **Arguments:**

    - `presets`: recipes by name; the first is the default. Add your own: `main({**PRETRAIN, "mine": recipe})`.
    - `arguments`: the words of the command line, without the program. `sample`, `finetune`, `evaluate` or `export` as
        the first word runs that command, if no preset has its name.
    - `types`: your own samplers, optimisers, grids, objectives, evaluators and networks by name. `--sampler NAME`,
        `--optim NAME` and so on choose them, and what was trained with them is loaded by these commands.
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
    """Runs a command and exits with what it returns, or with one line for what is wrong.

    0: done; 2: bad input, a full disk too; 75: stopped by a signal with its state saved; 130: by Ctrl-C without.

    **Arguments:**

    - `command`: given the words of the command line.
    - `arguments`: these words, without the program; None takes the program's own. The process is then taken to be the
        command's, and ends at once on Ctrl-C (`signals.end_interrupted`).
    """
    try:
        sys.exit(command(list(sys.argv[1:] if arguments is None else arguments)))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:  # outside the training loop, or the second one
        if arguments is None:
            end_interrupted(INTERRUPTED)
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `--help | head`: whoever read has read enough, and nothing more may be written at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)

"""The console command. Answers fast: nothing heavy is imported before a command needs it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import NoReturn

from datamodules.errors import InputError
from foundation.output import losing_output
from foundation.process import Ending, is_first_process, keep_freed_memory
from foundation.stopping import Preempted, held_signals

COMMANDS = {
    "data": "import sources into a store, show what a store holds",
    "pretrain": "train an encoder jointly on many properties",
    "plan": "memory, rate and days of a pretraining on many GPUs, before it is started",
    "adapt": "adapt a pretrained encoder to a property with few labels",
    "sweep": "search for options that lower the validation loss, in any number of workers",
    "slurm": "say before a job is queued what will go wrong with it",
    "study": "a grid of sources, strategies, sizes and trials over a folder of targets",
    "evaluate": "metrics of a checkpoint on a part of a store",
    "predict": "predict files, folders or a store",
    "rank": "order checkpoints by how well they suit a property, without fine-tuning",
    "export": "write a package that predicts without this program",
    "inspect": "show what a checkpoint is made of and what it has seen",
    "wandb": "upload runs that were recorded offline to Weights & Biases",
    "quickstart": "the whole path on crystals made here, in a few minutes",
    "benchmark": "rates of training, predicting and building graphs",
}


# Those that leave between two batches when a signal asks them to; while they import, signals wait.
_SAVING = ("pretrain", "adapt")
# Those whose work is worth more than what they print of it; of others, what they print is the work.
_TRAINING = (*_SAVING, "sweep", "study", "quickstart")


def run() -> NoReturn:
    """The program: one command, and the end of the process."""
    ending = Ending()
    ending.code = main()
    sys.exit(ending.code)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 for success, 1 where nothing could be done, 2 for a mistake in what was given.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    with losing_output() if words[:1] and words[0] in _TRAINING else nullcontext():
        return _answer(words, debug)


def _answer(words: list[str], debug: bool) -> int:
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_help(), flush=True)  # here, where a closed pipe is handled
            return 0 if words else 2
        if words[0] == "--version":
            from importlib.metadata import version

            print(version("crystal-foundation"))
            return 0
        if words[0] not in COMMANDS:
            raise InputError(f"no command {words[0]!r}; commands are {', '.join(COMMANDS)}")
        keep_freed_memory()
        with held_signals() if words[0] in _SAVING else nullcontext():
            code: int = importlib.import_module(f"foundation.commands.{words[0]}").main(words[1:])
        return code
    except InputError as error:
        if debug:
            raise
        print(f"foundation: error: {error}", file=sys.stderr)
        return 2
    except Preempted as leaving:
        if str(leaving):
            print(f"foundation: {leaving}", file=sys.stderr)
        return leaving.code
    except KeyboardInterrupt:
        print("foundation: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output went away, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except RuntimeError as error:
        told = None if debug else _why_stopped(error)
        if told is None:
            raise
        if told:
            print(f"foundation: stopped: {told}", file=sys.stderr)
        return 1


def _why_stopped(error: RuntimeError) -> str | None:
    """What a user is told of an error that ends a training; None of one that is ours to mend."""
    if type(error).__name__ == "NonFiniteLoss":
        return str(error) if is_first_process() else ""  # all of them stop for it
    if type(error).__name__ == "DistBackendError" or "/gloo/" in str(error):  # NCCL's; gloo's have no class
        reason = str(error).strip().splitlines()[0]
        return f"lost another process of this run, see what it printed; go on with --resume auto ({reason})"
    return None


def _help() -> str:
    lines = "\n".join(f"  {name:<11} {text}" for name, text in COMMANDS.items())
    return (
        "usage: foundation COMMAND [--help] ...\n\n"
        "Pretrain an E(3)-equivariant encoder of crystals on many properties, adapt it to a new one, predict.\n\n"
        f"commands:\n{lines}\n\n"
        "  --version   print the version\n"
        "  --debug     show the trace of an error"
    )


if __name__ == "__main__":
    run()

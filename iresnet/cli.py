"""The command line: parse, call the library, print. Imports torch only in the commands that need it."""

__all__ = ["main", "run"]

import inspect
import os
import sys
import threading
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import NoReturn

from cyclopts import App, CycloptsError

from iresnet.commands.analyze import analyze
from iresnet.commands.arguments import SeveralProcesses
from iresnet.commands.certify import certify
from iresnet.commands.compare import compare, report
from iresnet.commands.encode import decode, encode
from iresnet.commands.evaluate import evaluate
from iresnet.commands.export import export
from iresnet.commands.import_ import import_checkpoint
from iresnet.commands.interpolate import interpolate
from iresnet.commands.predict import predict
from iresnet.commands.reconstruct import reconstruct
from iresnet.commands.sample import sample
from iresnet.commands.score import score
from iresnet.commands.serve import serve
from iresnet.commands.train import recipes, train, train_help
from iresnet.console import complain, show_thread_failure, show_warning
from iresnet.errors import Interrupted, IResNetError, ProcessLost, WriteError
from iresnet.interrupts import heed_interrupts
from iresnet.launch import launch, started_together

app = App(
    name="iresnet",
    help="Train, evaluate, sample, invert and certify invertible residual networks.\n\n"
    "Start with: iresnet train digits-density --out runs/digits",
    help_epilogue="Exit status: 0 done, 1 a check failed, a run is damaged or a process was lost, 2 bad input, "
    "130 interrupted.",
)
app.command(recipes)
app.command(train)
for command in (evaluate, score, predict, encode, decode, sample, reconstruct, interpolate):
    app.command(command)
for command in (certify, compare, report, serve, export):
    app.command(command)
app.command(import_checkpoint, name="import")
app.command(analyze, name=("analyze", "analyse"))


def main() -> None:
    """Run the command line and exit with its status."""
    heed_interrupts()
    status = run(sys.argv[1:])
    if started_together():
        _leave(status)
    sys.exit(status)


def _leave(status: int) -> NoReturn:
    """End one of several processes at once, without the end of the interpreter.

    Threads of torch's process group, of gloo and of the store, outlive its destruction. Some are still at work while
    the interpreter ends, under load, and then the C++ library aborts the process, though all is done.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):  # nobody reads it any more
            stream.flush()
    os._exit(status)


def run(tokens: Sequence[str]) -> int:
    """Run one command and return its exit status: 0 done, 1 a check failed, 2 bad input, 130 interrupted.

    Args:
        tokens: the command line after the program's name.
    """
    warnings.showwarning, threading.excepthook = show_warning, show_thread_failure
    if list(tokens[:1]) == ["train"] and {"--help", "-h"} & set(tokens):
        app["train"].help = train_help()  # made when it is asked for: it reads source
    try:
        with _joined():
            return app(tokens, exit_on_error=False, print_error=False, result_action="return_value") or 0
    except SeveralProcesses as several:
        return launch(tokens, several.n, complain)
    except ProcessLost as error:
        resume = "; a run continues from its newest checkpoint with --resume" if _takes(tokens, "resume") else ""
        return complain(f"{error}{resume}", 1, about="loss")
    except WriteError as error:
        elsewhere = f"{' or' if error.advice else ';'} choose another --out" if _takes(tokens, "out") else ""
        return complain(f"{error}{elsewhere}", 2)
    except (IResNetError, CycloptsError) as error:
        return complain(str(error), 2)
    except (MemoryError, RuntimeError) as error:
        if not _is_lack_of_memory(error):
            raise
        command = tokens[0] if tokens else ""
        return complain(f"memory ran out: {REMEDIES.get(command, 'end other programs')}", 2)
    except OSError as error:
        return complain(f"cannot read or write {error.filename or 'a file'}: {error.strerror or error}", 2)
    except Interrupted as error:
        return complain(str(error), 130)
    except KeyboardInterrupt:
        return complain("interrupted", 130)


def _takes(tokens: Sequence[str], option: str) -> bool:
    """Return whether the command that was given has an option, which may then be advised."""
    command = app[tokens[0]].default_command if tokens and tokens[0] in app else None
    return command is not None and option in inspect.signature(command).parameters


REMEDIES = {
    "train": "lower --train.batch-size or --model.hidden, or raise --train.accumulate",
    "evaluate": "lower --batch-size or --dequantize-samples",
    "score": "lower --batch-size",
    "predict": "lower --batch-size",
    "encode": "lower --batch-size, or write .parquet",
    "decode": "lower --batch-size",
    "sample": "ask for fewer with -n",
    "reconstruct": "lower --batch-size or -n",
    "interpolate": "lower -n or --steps",
    "analyze": "lower -n",
}
"""What takes less memory, by command."""


def _is_lack_of_memory(error: Exception) -> bool:
    """Return whether there was not enough memory, which torch tells in several ways."""
    words = ("out of memory", "can't allocate memory")
    return isinstance(error, MemoryError) or any(text in str(error) for text in words)


def _joined() -> AbstractContextManager[None]:
    if not started_together():
        return nullcontext()
    from iresnet.collectives import process_group

    return process_group()

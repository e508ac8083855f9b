"""Exceptions and warnings: each message says what was expected, what came, and what to do."""

__all__ = [
    "ConvergenceWarning",
    "DataError",
    "IResNetError",
    "Interrupted",
    "ProcessLost",
    "RecipeError",
    "RunError",
    "RunWarning",
    "TrackerWarning",
    "UnknownNameError",
    "WriteError",
    "nearest",
]

import difflib
from collections.abc import Iterable


class IResNetError(ValueError):
    """Base of all errors that the user can fix. The command line exits with status 2 on it."""


class UnknownNameError(IResNetError):
    """Name that is not among the valid ones.

    Args:
        kind: the kind of thing that is named, in the singular, such as ``"data set"``.
        name: the name that came.
        valid: the names that exist.

    Example:
        >>> print(UnknownNameError("activation", "rellu", ["elu", "relu"]))
        unknown activation 'rellu'; did you mean 'relu'? (valid: elu, relu)
    """

    def __init__(self, kind: str, name: str, valid: Iterable[str]):
        names = sorted(valid)
        hint = nearest(name, names)
        did_you_mean = f"; did you mean '{hint}'?" if hint else ""
        super().__init__(f"unknown {kind} '{name}'{did_you_mean} (valid: {', '.join(names)})")


class DataError(IResNetError):
    """Data that are missing, damaged, or not of the expected form."""


class RecipeError(IResNetError):
    """Recipe, option or value that cannot be used."""


class RunError(IResNetError):
    """Run folder that cannot be read, written or resumed."""


class WriteError(RunError):
    """File that cannot be written, with advice where there is any.

    Args:
        path: the file.
        reason: why.
        advice: how to make the path writable; empty when the only remedy is to write elsewhere.

    Example:
        >>> print(WriteError("run/config.yaml", "No space left on device", "free the space"))
        cannot write run/config.yaml: No space left on device; free the space
    """

    def __init__(self, path: object, reason: str, advice: str = ""):
        self.advice = advice
        super().__init__(f"cannot write {path}: {reason}" + (f"; {advice}" if advice else ""))


class Interrupted(Exception):  # noqa: N818 (no error: the user asked for it)
    """Stop of a training by a signal, after everything was saved."""


class ProcessLost(Exception):  # noqa: N818 (no error of the user: a process was killed, or a machine failed)
    """Loss of another process of a run, which ended or does not answer."""


class ConvergenceWarning(UserWarning):
    """Warning that a solver stopped before it reached its tolerance."""


class RunWarning(UserWarning):
    """Warning that something in a run folder is damaged or unexpected and was skipped."""


class TrackerWarning(UserWarning):
    """Warning that a tracker failed; the training goes on."""


def nearest(name: str, names: Iterable[str]) -> str | None:
    """Return the valid name closest in spelling to ``name``, or ``None`` when none is close.

    Example:
        >>> nearest("minst", ["mnist", "digits"])
        'mnist'
    """
    matches = difflib.get_close_matches(name.lower(), list(names), n=1, cutoff=0.5)
    return matches[0] if matches else None

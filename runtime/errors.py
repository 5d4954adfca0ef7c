"""Every error trueport raises on purpose, and the exit code each one ends the command line with.

    TrueportError                 exit code
    ├── UsageError                2   wrong argument, unknown name, unreadable input
    │   └── ImageError            2   one picture can't be decoded or is not accepted
    ├── GateError                 1   a gate failed that has to pass before what was asked for is done
    ├── ExportError               2   the model can't be exported, or the graph breaks its contract
    ├── MissingError              3   this machine lacks a package, a device or a library
    │   └── PrecisionError        3   a runner here computes in another precision than was asked for
    ├── BundleError               4   damaged, tampered with, or of a schema that is not understood
    │   └── TrustError            4   names code to be run, and nobody has said that it is trusted
    └── RequestError                  one inference request can't be answered
        ├── InvalidRequestError   2   wrong shape, dtype, name or number of rows
        ├── OverloadedError           refused at admission: the queue is full or the deadline can't be met
        ├── DeadlineError             accepted, but its deadline passed before it could run
        ├── OutputError               the model answered with NaN or infinity
        ├── StuckError                a run has not come to its end for too long
        └── ClosedError               the session is closed or closing

Elsewhere a gate that fails is not an error: it is a `Verdict` that is falsy, and exit code 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_DONE = 0
EXIT_GATE_FAILED = 1
EXIT_USAGE = 2
EXIT_MISSING = 3
EXIT_BUNDLE = 4
EXIT_INTERNAL = 70
"""A defect of trueport itself, with a traceback; sysexits.h calls it EX_SOFTWARE."""
EXIT_INTERRUPTED = 130


class TrueportError(Exception):
    """Root of the tree. The message says what was expected, what was found and what to do."""

    exit_code = EXIT_USAGE


class UsageError(TrueportError):
    """The caller asked for something that can't be done as asked."""


class ImageError(UsageError):
    """A picture that can't be decoded, or is outside the accepted formats or limits."""


class GateError(TrueportError):
    """A gate failed that has to pass first; the message names what was measured and what is allowed."""

    exit_code = EXIT_GATE_FAILED


class ExportError(TrueportError):
    """The exporter failed, or what it made does not keep the graph's contract."""


class MissingError(TrueportError):
    """This machine lacks something; the message names the install."""

    exit_code = EXIT_MISSING


class PrecisionError(MissingError):
    """A runner was read back to compute in another precision than was asked for."""


class BundleError(TrueportError):
    """The bundle is damaged, not to be trusted, or written by a newer trueport."""

    exit_code = EXIT_BUNDLE


class TrustError(BundleError):
    """Rebuilding the original would import and call what the bundle names, without consent."""


class RequestError(TrueportError):
    """One inference request can't be answered; others are not touched by it."""


class InvalidRequestError(RequestError):
    """The request does not fit the model's inputs."""


class OverloadedError(RequestError):
    """Refused at admission.

    expected_wait_s: seconds until the queue is expected to have room or to meet such a deadline.
    """

    def __init__(self, message: str, expected_wait_s: float) -> None:
        super().__init__(message)
        self.expected_wait_s = expected_wait_s


class DeadlineError(RequestError):
    """The deadline passed while the request was waiting; it was not run."""


class OutputError(RequestError):
    """The model answered with NaN or infinity, which is no answer."""


class StuckError(RequestError):
    """A run has not come to its end for too long: it is given up, with what waits for it."""


class ClosedError(RequestError):
    """The session was closed before the request was answered."""


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """The error for a name that is not in a list: near choices first, else all of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=3, cutoff=0.5)
    if near:
        hint = f"did you mean {' or '.join(near)}?"
    else:
        hint = f"known: {', '.join(choices)}" if choices else "none is known"
    return UsageError(f"unknown {kind} {name!r}: {hint}")


def missing_extra(package: str, extra: str, purpose: str) -> MissingError:
    """The error for a package that an extra of trueport brings."""
    return MissingError(f"{purpose} needs {package}, which is not installed: pip install 'trueport[{extra}]'")

"""Exit codes of commands, and one-line messages instead of tracebacks for errors that users can fix."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from typing import NoReturn

from dcn_det.console import discard, print_line, use_console
from dcn_det.errors import UserError

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141

_USER_ERRNOS = {
    errno.ENOENT,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.EEXIST,
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EFBIG,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
    errno.ENFILE,
}
"""Missing or misplaced files, missing permissions, full disks, limits of the system; other errors keep their
traceback."""


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a command and exits with its code.

    A ``UserError`` or an error of the file system prints ``error: ...`` and exits with 2, Ctrl-C exits with 130, and a
    closed pipe (``... | head``) with 141. All other errors are defects and keep their traceback. Warnings, and errors
    of the file system in background threads, are printed on one line.
    """
    use_console()
    warnings.formatwarning = _one_line
    threading.excepthook = _thread_failed
    code = exit_code(main)
    if code == INTERRUPTED:
        with contextlib.suppress(ValueError):  # not the main thread
            # Another Ctrl-C, while the interpreter ends, would print a traceback.
            signal.signal(signal.SIGINT, lambda number, frame: os._exit(INTERRUPTED))
    sys.exit(code)


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats a warning without its source location."""
    return f"warning: {message}\n"


def _thread_failed(failure: threading.ExceptHookArgs) -> None:
    """Prints an error of the file system in a background thread, such as TensorBoard's writer, on one line."""
    error = failure.exc_value
    if isinstance(error, OSError) and error.errno in _USER_ERRNOS:
        print_line(f"warning: a writer in the background has stopped: {error.strerror}", sys.stderr)
    else:
        threading.__excepthook__(failure)


def exit_code(main: Callable[[], int]) -> int:
    """Like ``run``, but returns the code."""
    try:
        code = main()
        sys.stdout.flush()  # detects a closed pipe here
    except UserError as error:
        return _report(str(error))
    except BrokenPipeError:
        discard(sys.stdout)  # the interpreter flushes again at exit
        return BROKEN_PIPE
    except (Exception, KeyboardInterrupt) as error:
        if _interrupted(error):
            print_line("interrupted", sys.stderr)
            return INTERRUPTED
        if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and _is_out_of_memory(str(error))):
            reason = str(error).strip().split("\n")[0]
            return _report(f"out of memory{f' ({reason})' if reason else ''}; reduce sizes or batches")
        if not isinstance(error, OSError) or error.errno not in _USER_ERRNOS:
            raise
        if error.filename == "<stdout>":
            discard(sys.stdout)
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _report(f"{name}{error.strerror}")
    return code


def _is_out_of_memory(text: str) -> bool:
    """Returns whether the message of a library says that it cannot allocate memory."""
    return any(part in text for part in ("can't allocate memory", "out of memory", "size calculation overflowed"))


def _interrupted(error: BaseException | None) -> bool:
    """Returns whether Ctrl-C caused an error; a library that it interrupts may raise one of its own."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        if isinstance(error, KeyboardInterrupt):
            return True
        seen.append(error)
        error = error.__cause__ or error.__context__
    return False


def _report(message: str) -> int:
    for line in message.splitlines():
        print_line(f"error: {line}", sys.stderr)
    return USER_ERROR

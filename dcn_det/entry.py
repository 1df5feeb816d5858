"""Exit codes of commands, and one-line messages instead of tracebacks for errors that users can fix."""

from __future__ import annotations

import errno
import os
import sys
import warnings
from collections.abc import Callable
from typing import NoReturn

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
}
"""Missing or misplaced files, missing permissions, full disks; other errors keep their traceback."""


def run(main: Callable[[], int]) -> NoReturn:
    """Runs a command and exits with its code.

    A ``UserError`` or an error of the file system prints ``error: ...`` and exits with 2, Ctrl-C exits with 130, and a
    closed pipe (``... | head``) with 141. All other errors are defects and keep their traceback. Warnings are printed
    on one line.
    """
    warnings.formatwarning = _one_line
    sys.exit(exit_code(main))


def _one_line(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Formats a warning without its source location."""
    return f"warning: {message}\n"


def exit_code(main: Callable[[], int]) -> int:
    """Like ``run``, but returns the code."""
    try:
        code = main()
        sys.stdout.flush()  # detects a closed pipe here
    except UserError as error:
        return _report(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes again at exit
        return BROKEN_PIPE
    except OSError as error:
        if error.errno not in _USER_ERRNOS:
            raise
        name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
        return _report(f"{name}{error.strerror}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    return code


def _report(message: str) -> int:
    for line in message.splitlines():
        print(f"error: {line}", file=sys.stderr)
    return USER_ERROR

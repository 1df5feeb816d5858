"""Checks a pickle before it is loaded, so that loading takes no more time and memory than its size warrants.

Loaders trust the numbers in a pickle. A memo position of 2^29 takes six bytes and allocates gigabytes, as does a byte
array with a length and no content. The time to hash nested tuples can double with every level, and deep ones overflow
the stack.
"""

from __future__ import annotations

import pickletools
from mmap import mmap
from typing import IO, Any

MAX_TUPLE = 10_000
"""Maximum number of values in a tuple and the tuples inside it. Those in weights have about a dozen."""

_MARK = -1
_PUT = ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE")
_GET = ("GET", "BINGET", "LONG_BINGET")
_NESTING = ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "FROZENSET")


def check_pickle(file: IO[bytes] | mmap) -> None:
    """Checks one pickle without loading it, and leaves the file at its end.

    Args:
        file: its ``read`` must not allocate more than the rest of the file, like that of ``io.BytesIO`` or ``mmap``.

    Raises:
        ValueError: the pickle is malformed or truncated, or would cost more to load than its size warrants.
    """
    stack: list[int] = []  # the number of values in each object
    memo: dict[int, int] = {}
    try:
        for opcode, argument, _ in pickletools.genops(file):  # type: ignore[arg-type]  # it reads like a file
            _step(opcode, argument, stack, memo)
    except (IndexError, KeyError) as error:  # the stack is empty, or the memo has no such position
        raise ValueError("not a valid pickle") from error


def _step(opcode: pickletools.OpcodeInfo, argument: Any, stack: list[int], memo: dict[int, int]) -> None:
    if opcode.name in _PUT:
        position = len(memo) if opcode.name == "MEMOIZE" else argument
        if not 0 <= position <= len(memo):  # picklers count from 0
            raise ValueError(f"position {position} in a memo of {len(memo)}")
        memo[position] = stack[-1]
    elif opcode.name in _GET:
        stack.append(memo[argument])
    elif opcode.name == "DUP":
        stack.append(stack[-1])
    elif opcode.name == "MARK":
        stack.append(_MARK)
    else:
        size = 1 + sum(_taken(opcode, stack)) if opcode.name in _NESTING else 1
        if size > MAX_TUPLE:
            raise ValueError(f"a tuple of more than {MAX_TUPLE} values")
        stack.extend(size for _ in opcode.stack_after)


def _taken(opcode: pickletools.OpcodeInfo, stack: list[int]) -> list[int]:
    """Removes the operands of an opcode from the stack and returns them."""
    before = opcode.stack_before
    if pickletools.markobject in before:
        items = []
        while (item := stack.pop()) != _MARK:
            items.append(item)
        operands = before.index(pickletools.markobject)
    else:
        items, operands = [], len(before)
    for _ in range(operands):
        items.append(stack.pop())
    if _MARK in items and opcode.name != "POP":
        raise IndexError("an operand is missing")
    return items

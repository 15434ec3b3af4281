"""What a frame is about to do with a traced value, found in its bytecode.

In: a frame that branches on a traced value. Out: the side that does not raise, if the other side
does nothing else. `if x.dim() != 4: raise ...` and `assert ...` have but one outcome in a run that
succeeds, so a trace may go on there. In: a frame in which a value's type is looked at. Out: whether
it does that itself. In: a frame that iterates over a value. Out: whether it unpacks it. Called by
`module_tracer.py` and `tracer.py`.
"""

from __future__ import annotations

import dis
import functools
from types import CodeType, FrameType

_JUMPS = ("POP_JUMP_IF_", "POP_JUMP_FORWARD_IF_", "POP_JUMP_BACKWARD_IF_")
_PURE = (
    "LOAD_",
    "PUSH_NULL",
    "PRECALL",
    "CALL",
    "COMPARE_OP",
    "BINARY_",
    "CONTAINS_OP",
    "IS_OP",
    "TO_BOOL",
    "BUILD_",
    "FORMAT_",
    "CONVERT_VALUE",
    "KW_NAMES",
    "NOT_TAKEN",
    "NOP",
    "COPY",
    "UNARY_",
    "POP_TOP",
)


def checked_outcome(frame: FrameType, *, direct: bool) -> bool | None:
    """The truth value with which a branch that is a check does not raise; None for other branches.

    Args:
        frame: where `bool()` of the value is being asked.
        direct: accept only branches one side of which raises at once. Otherwise that side may
            also look at further conditions (`if a and b: raise`).
    """
    instructions, at = _instructions(frame.f_code)
    i = at.get(frame.f_lasti)
    if i is None:
        return None
    jump = instructions[i]
    if jump.opname in ("TO_BOOL", "COMPARE_OP"):  # ask for the truth value ahead of the jump
        i += 1
        jump = instructions[i]
    if not jump.opname.startswith(_JUMPS) or "NONE" in jump.opname:
        return None
    jumps_if = "IF_TRUE" in jump.opname
    beside, target = i + 1, at[jump.argval]
    if _only_raises(instructions, at, beside, target, direct):
        return jumps_if
    if _only_raises(instructions, at, target, beside, direct):
        return not jumps_if
    return None


def asks_type(frame: FrameType) -> bool:
    """Whether the frame itself asks for a type: `isinstance(x, T)`, `x.__class__`, `case T():`.

    If it calls something else, compiled code is asking. What that takes for a tensor, it opens.
    """
    if frame.f_globals.get("__name__") == "abc":  # by which `isinstance(x, Sequence)` goes
        return True
    instructions, at = _instructions(frame.f_code)
    i = at.get(frame.f_lasti)
    if i is None or "CALL" not in instructions[i].opname:
        return True
    if instructions[i - 1].opname == "PRECALL":  # Python 3.11
        i -= 1
    arguments = 0
    while i > 0 and arguments < 2:  # back to where the callable is loaded
        i -= 1
        arguments += dis.stack_effect(instructions[i].opcode, instructions[i].arg, jump=False)
    if instructions[i - 1].opname == "PUSH_NULL":
        i -= 1
    return i > 0 and instructions[i - 1].argval in ("isinstance", "issubclass")


def unpacked_length(frame: FrameType) -> int | None:
    """Into how many names the frame unpacks (`a, b = x`) what it is iterating over, if it does."""
    instructions, at = _instructions(frame.f_code)
    i = at.get(frame.f_lasti)
    if i is None or instructions[i].opname != "UNPACK_SEQUENCE":
        return None
    return instructions[i].arg


def _only_raises(
    instructions: list[dis.Instruction], at: dict[int, int], start: int, other: int, direct: bool
) -> bool:
    """Whether every way from `start` raises, or comes to `other` with nothing done on it."""
    pending, seen, raises = [start], set(), False
    rejoin = _place(instructions, other)
    while pending:
        i = pending.pop()
        if i in seen or (not direct and _place(instructions, i) == rejoin):
            continue
        seen.add(i)
        if i >= len(instructions):
            return False
        name = instructions[i].opname
        if name == "RAISE_VARARGS":
            raises = True
        elif name.startswith(_JUMPS) and not direct:
            pending += [i + 1, at[instructions[i].argval]]
        elif name.startswith(_PURE):
            pending.append(i + 1)
        else:
            return False
    return raises


def _place(instructions: list[dis.Instruction], i: int) -> object:
    """Equal for places from which the code goes on alike: one `return None` is like another."""
    here = instructions[i : i + 2]
    names = [instruction.opname for instruction in here]
    if names[:1] == ["RETURN_CONST"] or names == ["LOAD_CONST", "RETURN_VALUE"]:
        return "return", here[0].argrepr
    return i


@functools.lru_cache(maxsize=256)
def _instructions(code: CodeType) -> tuple[list[dis.Instruction], dict[int, int]]:
    instructions: list[dis.Instruction] = []
    at: dict[int, int] = {}
    for instruction in dis.get_instructions(code):
        if instruction.opname != "CACHE":
            at[instruction.offset] = len(
                instructions
            )  # a prefix counts as what it is the prefix of
            if instruction.opname != "EXTENDED_ARG":
                instructions.append(instruction)
    return instructions, at

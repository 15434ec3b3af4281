"""Rule files: rules as TOML or JSON, data and no code.

In: the path of a file; or rules and a path. Out: rules; or the file.

A rule is a table with the arguments of `fxtie.Rule`:

    [[rule]]
    target = "decoder.*"                             # names, `*`, `**`, `re:...`; or several
    source = "encoder.{0}"                           # or several: ["a", "b"], or none: []
    weight = { transform = "rot90", k = 1 }          # a registered name, with its arguments
    bias = false                                     # leave it alone; "same" where it isn't given
    tensors = { in_proj_weight = "neg" }             # those that are not called weight or bias
    buffers = true                                   # false where it isn't given
    exclude = ["decoder.3"]
    count = 3

With `transform` it is a single tie (`fxtie.Tie`), between tensors:

    [[rule]]
    target = "head.weight"
    source = "embedding.weight"
    transform = "same"

What several rules share has a name: free tensors, and learnable transforms. The latter's own
transform may refer to shared ones above it.

    [bank.templates]
    n = 8
    shape = [64, 64, 3, 3]
    dtype = "float32"                                # torch's default where it isn't given

    [tensors.vera]
    A = { shape = [4, 64], frozen = true }
    B = { shape = [64, 4], dtype = "float32" }

    [shared.adapter]
    transform = { transform = "LowRank", rank = 4 }
    shape = [64, 64]                                 # of the targets, if the transform needs it
    dtype = "float32"

    [[rule]]
    target = "re:conv_[1-4]"
    source = { bank = "templates" }
    weight = { transform = "Mix", n = 8 }
    bias = false

    [[rule]]
    target = "*.q_proj"
    source = ["{0}.q_proj", { tensors = "vera" }]    # or one: { tensors = "vera", entry = "A" }
    weight = "mean"                                  # or a registered one of your own

    [[rule]]
    target = "fc_*"
    source = "fc"
    weight = { shared = "adapter" }

JSON has the same keys; `rule` is a list. `rules.schema.json` beside this file is its JSON schema,
for editors.
"""

from __future__ import annotations

import json
import re
import sys
from bisect import bisect_left
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, TypeAlias

from fxtie.errors import RuleError
from fxtie.rules.reader import DataPath, RuleDataError, listed, path_text, read_rules
from fxtie.rules.replacing import FilePath, replacing
from fxtie.rules.rule import Rule, Rules, Tie, as_rules
from fxtie.rules.writer import write_rules

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

LineOf: TypeAlias = Callable[[DataPath], int]


def load_rules(path: FilePath) -> list[Rule | Tie]:
    """The rules of a TOML or JSON file. `help("fxtie.rules.files")` shows all that it can say.

    Args:
        path: a file that ends in `.toml` or `.json`. Transforms of your own must have been
            registered: import the module that does it. Banks and shared transforms are made on
            torch's default device.

    Returns:
        The rules in their order, for `transform`, `plan` and the others.

    Raises:
        RuleError: for what is no rule file, with every fault: its file, line, key, and the closest
            name where one was mistyped.
        OSError: if the file can't be read.

    Notes:
        Nothing in the file is executed: its transforms are names that are looked up.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = Path(folder.name, "rules.toml")
        >>> _ = file.write_text('''
        ... [[rule]]
        ... target = "decoder"
        ... source = "encoder"
        ... weight = { transform = "transpose" }
        ... bias = false
        ... ''')
        >>> load_rules(file)
        [Rule('decoder', 'encoder', weight=transpose(), bias=None)]
        >>> _ = file.write_text(file.read_text().replace("transpose", "transpos"))
        >>> load_rules(file)
        Traceback (most recent call last):
        ...
        fxtie.errors.RuleError: ...rules.toml:5: rule[0].weight: There is no transform named ...
        >>> folder.cleanup()
    """
    path = Path(path)
    try:
        return _load(path)
    except RecursionError:
        raise RuleError(f"{path}:1: It is nested too deeply.") from None


def _load(path: Path) -> list[Rule | Tie]:
    read, _ = _format(path)
    content = path.read_bytes()
    try:
        data, line_of = read(_decode(content))
    except _SyntaxFault as error:
        raise RuleError(f"{path}:{error.line}: {error}") from error
    try:
        return read_rules(data)[0]
    except RuleDataError as error:
        lines = (f"{path}:{line_of(at)}: {path_text(at)}{fault}" for at, fault in error.faults)
        raise RuleError(listed(lines, len(error.faults))) from error


def dump_rules(rules: Rules, path: FilePath) -> None:
    """Write rules to a TOML or JSON file, which `load_rules` reads back.

    Args:
        rules: one `Rule` or `Tie`, or several.
        path: a file that ends in `.toml` or `.json`. Written to a temporary file, then renamed.

    Raises:
        RuleError: for what is code: callables as patterns, and transforms without a registered
            name. The file is as it was then.
        OSError: if the file can't be written.

    Notes:
        The values of banks and learnable transforms are not part of the rules: see `fxtie.save`.

    Example:
        >>> import fxtie, tempfile, torch
        >>> from pathlib import Path
        >>> folder = tempfile.TemporaryDirectory()
        >>> file = Path(folder.name, "rules.toml")
        >>> dump_rules(fxtie.Rule("conv_2", "conv_1", weight=torch.square, bias=None), file)
        >>> print(file.read_text())
        [[rule]]
        target = "conv_2"
        source = "conv_1"
        weight = "square"
        bias = false
        <BLANKLINE>
        >>> folder.cleanup()
    """
    path = Path(path)
    _, write = _format(path)
    text = write(write_rules(as_rules(rules)))
    with replacing(path) as temporary:
        Path(temporary).write_text(text, encoding="utf-8", newline="\n")


class _SyntaxFault(Exception):
    """Content that is not valid TOML, JSON or UTF-8."""

    def __init__(self, what: object, line: int) -> None:
        super().__init__(what)
        self.line = line


def _decode(content: bytes) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise _SyntaxFault(f"This is no text in UTF-8: {error}.", line) from error


# --- TOML -------------------------------------------------------------------------------------


def _read_toml(text: str) -> tuple[Any, LineOf]:
    try:
        data = tomllib.loads(text)
    except ValueError as error:
        found = re.search(r"\(at line (\d+)", str(error))
        line = int(found[1]) if found else text.count("\n") + 1
        raise _SyntaxFault(error, line) from error
    return data, _toml_lines(text)


def _toml_lines(text: str) -> LineOf:
    """A function that gives the line in which a key begins.

    The parser doesn't tell. But the first lines of a file are a file too, if they end where a
    statement ends: the key begins in the first line without which it isn't there.
    """
    lines = [line + "\n" for line in text.split("\n")]

    @cache
    def beginning(n: int) -> Any:
        while True:
            try:
                return tomllib.loads("".join(lines[:n]))
            except tomllib.TOMLDecodeError:  # in the middle of a statement
                n += 1

    def line_of(path: DataPath) -> int:
        found = bisect_left(range(len(lines)), True, key=lambda n: _has(beginning(n), path))
        return max(1, found)

    return line_of


def _has(data: Any, path: DataPath) -> bool:
    try:
        for step in path:
            data = data[step]
    except LookupError:
        return False
    return True


def _write_toml(data: dict[str, Any]) -> str:
    # By hand, since tomli-w makes a section of its own of each inner table: `[rule.weight]`.
    sections = [
        (f"[{kind}.{_toml_key(name)}]", entry)
        for kind in ("bank", "tensors", "shared")
        for name, entry in data.get(kind, {}).items()
    ]
    sections += [("[[rule]]", entry) for entry in data["rule"]]
    return "\n".join(
        "".join((f"{title}\n", *(f"{_toml_item(item)}\n" for item in entry.items())))
        for title, entry in sections
    )


def _toml_item(item: tuple[str, Any]) -> str:
    return f"{_toml_key(item[0])} = {_toml_value(item[1])}"


def _toml_key(key: str) -> str:
    return key if re.fullmatch("[A-Za-z0-9_-]+", key) else _toml_value(key)


def _toml_value(value: Any) -> str:
    if isinstance(value, dict):
        return f"{{ {', '.join(map(_toml_item, value.items()))} }}"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if value is None:
        raise RuleError("TOML can't say None, an argument of a transform. Write a .json file.")
    # Numbers, bools and strings look the same in JSON, but for one character.
    return json.dumps(value, ensure_ascii=False, allow_nan=False).replace("\x7f", "\\u007f")


# --- JSON -------------------------------------------------------------------------------------


def _read_json(text: str) -> tuple[Any, LineOf]:
    try:
        data = json.loads(text)
        places = _json_places(text)
    except ValueError as error:
        raise _SyntaxFault(error, getattr(error, "lineno", 1)) from error
    return data, lambda path: text.count("\n", 0, places.get(path, 0)) + 1


def _json_places(text: str) -> dict[DataPath, int]:
    """Where in a JSON text each key and each item begins. Raises ValueError for a key twice."""
    skip = re.compile(r"[\s,:]*").match
    decode = json.JSONDecoder().raw_decode
    places: dict[DataPath, int] = {}

    def after(match: re.Match[str] | None) -> int:
        assert match is not None
        return match.end()

    def walk(at: int, path: DataPath) -> int:
        if text[at] not in "[{":
            return decode(text, at)[1]
        is_object, n = text[at] == "{", 0
        at = after(skip(text, at + 1))
        while text[at] not in "]}":
            place, step = at, n
            if is_object:
                step, at = decode(text, at)
                at = after(skip(text, at))
            entry = (*path, step)
            if entry in places:
                raise json.JSONDecodeError(f"The key {step!r} is there twice", text, place)
            places[entry] = place
            at = after(skip(text, walk(at, entry)))
            n += 1
        return at + 1

    walk(after(skip(text, 0)), ())
    return places


def _write_json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, allow_nan=False) + "\n"


_Format: TypeAlias = tuple[Callable[[str], tuple[Any, LineOf]], Callable[[dict[str, Any]], str]]
_FORMATS: dict[str, _Format] = {
    ".toml": (_read_toml, _write_toml),
    ".json": (_read_json, _write_json),
}


def _format(path: Path) -> _Format:
    if path.suffix not in _FORMATS:
        raise RuleError(f"{path}: A rule file ends in {' or '.join(_FORMATS)}.")
    return _FORMATS[path.suffix]

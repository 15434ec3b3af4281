"""The command line: `fxtie plan|diff|report|suggest MODEL ...`, or `python -m fxtie`.

Models are built on the meta device, so that any size is quick. `suggest --values` needs values.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from fxtie import __version__
from fxtie.capturing.report import report
from fxtie.capturing.transform import transform
from fxtie.errors import FxtieError, closest
from fxtie.looking.diff import diff
from fxtie.looking.suggest import suggest
from fxtie.planning.plan import plan
from fxtie.rules.files import dump_rules, load_rules
from fxtie.rules.rule import Rule, Tie

_EPILOG = """\
examples:
  fxtie suggest torchvision.models:resnet50 -o rules.toml
  fxtie plan torchvision.models:resnet50 --rules rules.toml
  fxtie diff my_package.nets:build --kwargs '{"depth": 12}' --rules rules.toml --html diff.html

exit codes: 0, 1 if the rules don't fit the model, 2 for wrong usage
"""


class UsageError(Exception):
    """Arguments that can't be used, such as the name of something that is not there."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code.

    Args:
        argv: the arguments; those of the process by default.

    Example:
        >>> main(["suggest", "torch.nn:LSTM", "--kwargs", '{"input_size": 2, "hidden_size": 3}'])
        no two layers go together: nothing to suggest
        0
    """
    try:
        return _run(argv)
    except BrokenPipeError:  # the reader, such as `head`, has left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(argv: Sequence[str] | None) -> int:
    try:
        arguments = _parser().parse_args(argv)
    except SystemExit as stop:  # argparse has said why
        return 0 if stop.code is None else int(stop.code)
    try:
        arguments.run(arguments)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except Exception as error:  # any: as one line, or with its traceback
        if arguments.debug:
            traceback.print_exception(error)
        else:
            print(f"fxtie: {_told(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError | OSError) else 1
    return 0


def _told(error: Exception) -> str:
    if isinstance(error, FxtieError | UsageError):
        return str(error)
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return (
        f"{type(error).__name__}: {error}\nIt was not expected; --debug shows where it comes from."
    )


# -- arguments ------------------------------------------------------------------------------------


class _PrintCompletion(argparse.Action):
    """Prints a script by which a shell completes commands, options, and the names of files."""

    def __init__(self, *args: Any, files: Sequence[argparse.Action], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.files = files

    def __call__(self, parser: argparse.ArgumentParser, _: Any, shell: Any, *args: Any) -> None:
        try:
            import shtab
        except ImportError:
            parser.error("completion needs the package shtab: pip install 'fxtie[completion]'")
        for action in self.files:
            action.complete = shtab.FILE  # type: ignore[attr-defined]
        print(shtab.complete(parser, shell), flush=True)
        parser.exit()


def _parser() -> argparse.ArgumentParser:
    files: list[argparse.Action] = []

    def add_file(command: argparse.ArgumentParser, *names: str, **options: Any) -> None:
        files.append(command.add_argument(*names, metavar="FILE", **options))

    parser = argparse.ArgumentParser(
        "fxtie",
        description="Tensors of a PyTorch model as functions of other tensors of the same model.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"fxtie {__version__}")
    parser.add_argument(
        "--print-completion",
        action=_PrintCompletion,
        files=files,
        choices=("bash", "zsh", "fish", "tcsh"),
        help="print a script by which this shell completes what is typed",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for run, help in (
        (_plan, "what the rules resolve to: each tie, and what it saves"),
        (_diff, "what tying changes in the graph"),
        (_report, "what tying does: captured graphs, modules that were kept and why"),
        (_suggest, "which layers could be tied"),
    ):
        name = run.__name__.removeprefix("_")
        command = commands.add_parser(name, help=help, description=f"Shows {help}.")
        command.set_defaults(run=run, rules=None)
        _add_arguments(command)
        add_file(command, "--html", help="write a page with the picture as well")
        if run is _suggest:
            add_file(command, "-o", "--output", help="write the rules, as .toml or .json")
            command.add_argument("--scheme", help="one scheme: repeat, adjacent, cycle 3, ...")
            command.add_argument(
                "--budget", type=_budget, help="parameters that may stay: a number, or 0.5 of them"
            )
        else:
            add_file(command, "--rules", required=True, help="the rules, as .toml or .json")
    return parser


def _budget(text: str) -> float:
    return float(text) if "." in text else int(text)


def _add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "model",
        metavar="MODEL",
        help="package.module:callable that gives the model, such as torchvision.models:resnet50; "
        "modules of the current directory are found too",
    )
    command.add_argument(
        "--kwargs",
        type=_json_object,
        default={},
        metavar="JSON",
        help="keyword arguments of the callable, such as '{\"num_classes\": 10}'",
    )
    command.add_argument(
        "--values",
        action="store_true",
        help="build the model with its values; by default its tensors have but shapes. Slower; "
        "`suggest` then tells how alike the weights are",
    )
    command.add_argument("--json", action="store_true", help="print JSON instead of text")
    command.add_argument("--debug", action="store_true", help="show where an error comes from")


def _json_object(text: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON: {error}") from None
    if not isinstance(data, dict):
        raise argparse.ArgumentTypeError(f"{text!r} is no JSON object, as {{}} is")
    return data


# -- models ---------------------------------------------------------------------------------------


def _model_and_rules(arguments: argparse.Namespace) -> tuple[nn.Module, list[Rule | Tie]]:
    """The model, and the rules if there are any; without values where that works."""
    with contextlib.redirect_stdout(sys.stderr):  # standard output is ours
        found = _imported(arguments.model)

        def make() -> tuple[nn.Module, list[Rule | Tie]]:
            rules = [] if arguments.rules is None else load_rules(arguments.rules)
            return _model(arguments.model, found, arguments.kwargs), rules

        if not arguments.values:
            # A model may need values to be built. Any other error comes again in the second try.
            with contextlib.suppress(Exception), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # on weights that are not loaded
                with torch.device("meta"):
                    return make()
        return make()


def _imported(name: str) -> Any:
    """What `package.module:callable` names."""
    module_name, colon, path = name.partition(":")
    if not (module_name and colon and path):
        raise UsageError(
            f"MODEL is package.module:callable, such as torchvision.models:resnet50, not {name!r}."
        )
    if os.getcwd() not in sys.path:  # as `python -m` does
        sys.path.insert(0, os.getcwd())
    try:
        found = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # any code may run there
        raise UsageError(
            f"The module {module_name!r} can't be imported: {type(error).__name__}: {error}"
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            raise UsageError(f"There is no {part!r} in {module_name!r}.{closest(part, dir(found))}")
        found = getattr(found, part)
    return found


def _model(name: str, found: Any, kwargs: dict[str, Any]) -> nn.Module:
    if isinstance(found, nn.Module) and not kwargs:
        return found
    try:
        model = found(**kwargs)
    except Exception as error:  # any code may run there
        raise UsageError(
            f"{name} can't be called with {kwargs}: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(model, nn.Module):
        raise UsageError(f"{name} gives no torch.nn.Module, but {type(model).__name__}.")
    return model


# -- commands -------------------------------------------------------------------------------------


def _plan(arguments: argparse.Namespace) -> None:
    found = plan(*_model_and_rules(arguments))
    _show(arguments, found)


def _diff(arguments: argparse.Namespace) -> None:
    model, rules = _model_and_rules(arguments)
    found = diff(model, transform(model, rules))
    _show(arguments, found)


def _report(arguments: argparse.Namespace) -> None:
    found = report(transform(*_model_and_rules(arguments)))
    _show(arguments, found)


def _suggest(arguments: argparse.Namespace) -> None:
    model, _ = _model_and_rules(arguments)
    found = suggest(model, arguments.scheme, arguments.budget)
    if arguments.output is not None:
        dump_rules(found.rules, arguments.output)
    picture = None if arguments.html is None else plan(model, found.rules)
    _show(arguments, found, picture)


def _show(arguments: argparse.Namespace, found: Any, picture: Any = None) -> None:
    """Print what was found; draw it, or another picture of it, if asked to."""
    if arguments.html is not None:
        (picture or found).html(arguments.html)
    print(json.dumps(found.to_dict(), indent=2) if arguments.json else found)

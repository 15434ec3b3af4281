"""The command line: what it prints is what the library says, and errors are words."""

import json
import runpy
import subprocess
import sys

import pytest
import torch
from torch import nn
from vision import import_torchvision

import fxtie
from fxtie.cli import main
from fxtie.looking.suggest import suggest
from fxtie.planning.plan import Plan

RULES = '[[rule]]\ntarget = "2"\nsource = "0"\nweight = "square"\n'
NETS = """
import torch
from torch import nn

def net(width=4):
    print("building")
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))

def wants_values():
    return net(int(torch.tensor(4.0)))

def nothing():
    return None

def huge():
    return nn.Sequential(*(nn.Linear(10**6, 10**6) for _ in range(100)))

class Factory:
    make = staticmethod(net)

instance = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A folder with a module of models and a file of rules, to work in."""
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "rules.toml").write_text(RULES)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("nets", None)


def net(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"fxtie {fxtie.__version__}\n"


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("fxtie pl", ["plan"]),
        ("fxtie plan --ru", ["--rules"]),
        ("fxtie plan --rules ru", ["rules.toml"]),
        ("fxtie suggest -o ru", ["rules.toml"]),
    ],
)
def test_a_shell_completes_what_is_typed(typed, offered, nets, capsys):
    pytest.importorskip("shtab")
    assert main(["--print-completion", "bash"]) == 0
    words = typed.split()
    script = (
        f"{capsys.readouterr().out}\nCOMP_WORDS=({typed}) COMP_CWORD={len(words) - 1}\n"
        f"_shtab_fxtie fxtie {words[-1]} {words[-2]}\nprintf '%s\\n' \"${{COMPREPLY[@]}}\"\n"
    )
    ran = subprocess.run(["bash"], input=script, capture_output=True, text=True, check=True)
    assert ran.stdout.split() == offered, ran.stderr


def test_what_completion_needs_is_told(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print-completion", "zsh"]) == 2
    assert "pip install 'fxtie[completion]'" in capsys.readouterr().err


def expected(command: str, model: nn.Module) -> object:
    rules = fxtie.load_rules("rules.toml")
    if command == "suggest":
        return suggest(model)
    if command == "plan":
        return fxtie.plan(model, rules)
    tied = fxtie.transform(model, rules)
    return fxtie.diff(model, tied) if command == "diff" else fxtie.report(tied)


def command_line(command: str, *more: str) -> list[str]:
    rules = [] if command == "suggest" else ["--rules", "rules.toml"]
    return [command, "nets:net", *rules, *more]


COMMANDS = ("plan", "diff", "report", "suggest")


@pytest.mark.parametrize("command", COMMANDS)
def test_text_is_that_of_the_library(nets, capsys, command):
    assert main(command_line(command, "--kwargs", '{"width": 6}')) == 0
    out, err = capsys.readouterr()
    assert out == f"{expected(command, net(6).to('meta'))}\n"
    assert err == "building\n"  # standard output is ours


@pytest.mark.parametrize(
    "command, keys",
    [
        ("plan", {"parameters", "ties"}),
        ("diff", {"parameters", "bytes", "removed", "added", "layers", "unseen"}),
        ("report", {"parameters", "ties", "bytes_saved", "regions", "kept", "unused"}),
        ("suggest", {"parameters", "suggestions"}),
    ],
)
def test_json(nets, capsys, command, keys):
    assert main(command_line(command, "--json")) == 0
    data = json.loads(capsys.readouterr().out)
    assert data.keys() >= keys
    assert data["parameters"] == {"before": 40, "after": 20}


def test_json_of_ties(nets, capsys):
    main(command_line("plan", "--json"))
    weight, bias = json.loads(capsys.readouterr().out)["ties"]
    assert weight == {
        "target": "2.weight",
        "sources": ["0.weight"],
        "transform": "square",
        "shape": [4, 4],
        "dtype": "float32",
        "saved": 16,
    }
    assert bias["transform"] == "same"


def test_json_of_kept_modules(nets, capsys):
    rule = RULES.replace('"2"', '"b"').replace('"0"', '"a"')
    (nets / "rules.toml").write_text(rule)
    assert main(["report", "models:Branches", "--rules", "rules.toml", "--json"]) == 0
    kept = json.loads(capsys.readouterr().out)["kept"]
    assert all(module.keys() == {"name", "type", "reason", "file", "line"} for module in kept)


@pytest.mark.parametrize("command", COMMANDS)
def test_pictures(nets, monkeypatch, command):
    drawn = []
    for kind in (Plan, fxtie.GraphDiff, fxtie.Report):
        monkeypatch.setattr(
            kind, "html", lambda self, path: drawn.append((self, path)), raising=False
        )
    assert main(command_line(command, "--html", "page.html")) == 0
    ((found, path),) = drawn
    assert path == "page.html"
    kinds = {"plan": Plan, "suggest": Plan, "diff": fxtie.GraphDiff, "report": fxtie.Report}
    assert type(found) is kinds[command]


def test_suggested_rules_are_a_file_of_rules(nets, capsys):
    assert main(["suggest", "nets:net", "-o", "found.toml"]) == 0
    assert main(["plan", "nets:net", "--rules", "found.toml"]) == 0
    out = capsys.readouterr().out
    assert out.endswith("2 ties, parameters 40 -> 20 (50.0%)\n")


def test_schemes_and_budgets(nets, capsys):
    huge = ["suggest", "nets:huge"]
    assert main([*huge, "--scheme", "adjacent", "-o", "found.toml"]) == 0
    (rule,) = fxtie.load_rules("found.toml")
    assert rule.names == ("{0 // 2 * 2}",)
    assert main([*huge, "--budget", "0.5", "--json"]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed[printed.index("{\n") :])["parameters"]
    assert found["after"] <= found["before"] / 2
    assert main([*huge, "--scheme", "spiral"]) != 0
    assert "spiral" in capsys.readouterr().err


# -- models ---------------------------------------------------------------------------------------


def test_models_are_built_without_values(nets, capsys):
    assert main(["suggest", "nets:huge"]) == 0
    assert "99" in capsys.readouterr().out


def test_models_that_need_values_get_them(nets, capsys):
    assert main(["plan", "nets:wants_values", "--rules", "rules.toml"]) == 0
    assert "2 ties" in capsys.readouterr().out


def test_values_tell_how_alike_weights_are(nets, capsys):
    main(["suggest", "nets:net"])
    assert "distance" not in capsys.readouterr().out
    main(["suggest", "nets:net", "--values"])
    assert "distance" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["nets:Factory.make", "nets:instance"])
def test_other_ways_to_name_a_model(nets, capsys, name):
    assert main(["plan", name, "--rules", "rules.toml"]) == 0
    assert "2 ties" in capsys.readouterr().out


# -- errors ---------------------------------------------------------------------------------------

WRONG = {
    "no colon": (["suggest", "nets"], "MODEL is package.module:callable"),
    "no module": (["suggest", "nots:net"], "'nots' can't be imported: ModuleNotFoundError"),
    "no callable": (["suggest", "nets:nett"], "There is no 'nett' in 'nets'. Closest names: 'net'"),
    "wrong arguments": (["suggest", "nets:net", "--kwargs", '{"depth": 3}'], "unexpected keyword"),
    "an instance with arguments": (["suggest", "nets:instance", "--kwargs", '{"a": 3}'], "a': 3"),
    "no model": (["suggest", "nets:nothing"], "gives no torch.nn.Module, but NoneType"),
    "no JSON": (["suggest", "nets:net", "--kwargs", "{depth: 3}"], "'{depth: 3}' is not JSON"),
    "no JSON object": (["suggest", "nets:net", "--kwargs", "[3]"], "'[3]' is no JSON object"),
    "no file": (["plan", "nets:net", "--rules", "no.toml"], "no.toml: No such file or directory"),
    "no rules": (["plan", "nets:net"], "the following arguments are required: --rules"),
    "no command": ([], "the following arguments are required: COMMAND"),
    "no folder": (["suggest", "nets:net", "-o", "no/rules.toml"], "No such file or directory"),
}


@pytest.mark.parametrize("arguments, message", WRONG.values(), ids=WRONG)
def test_wrong_usage(nets, capsys, arguments, message):
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert message in err
    assert not out and "Traceback" not in err


def test_rules_that_do_not_fit(nets, capsys):
    (nets / "rules.toml").write_text(RULES.replace('"0"', '"5"'))
    for command in ("plan", "diff", "report"):
        assert main(command_line(command)) == 1
        out, err = capsys.readouterr()
        assert "fxtie: Rule('2', '5', weight=square): there is no source module '5'." in err
        assert not out and "Traceback" not in err
    assert main(command_line("plan", "--debug")) == 1
    assert "Traceback" in capsys.readouterr().err


def test_a_faulty_rule_file(nets, capsys):
    (nets / "rules.toml").write_text(RULES.replace("square", "sqare"))
    assert main(command_line("plan")) == 1
    assert "rules.toml:4: rule[0].weight: There is no transform named" in capsys.readouterr().err


@pytest.mark.parametrize("code, name", [("1 / 0", "ZeroDivisionError"), ("exit(3)", "SystemExit")])
def test_faults_of_a_module_are_words_too(nets, capsys, code, name):
    (nets / "nets.py").write_text(code)
    assert main(["suggest", "nets:net"]) == 2
    assert f"'nets' can't be imported: {name}" in capsys.readouterr().err


def test_what_nobody_expected_is_told(nets, capsys, monkeypatch):
    monkeypatch.setattr(Plan, "__str__", lambda self: str(1 / 0))
    assert main(command_line("plan")) == 1
    assert "ZeroDivisionError: division by zero" in capsys.readouterr().err


def test_help(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert "exit codes: 0, 1 if the rules don't fit" in out
    assert all(command in out for command in COMMANDS)
    assert max(map(len, out.splitlines())) <= 100


# -- as a process ---------------------------------------------------------------------------------


def run(*arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "fxtie", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, **options)


def test_python_m_fxtie(nets):
    done = run("plan", "nets:net", "--rules", "rules.toml")
    assert (done.returncode, done.stderr) == (0, "building\n")
    assert done.stdout.endswith("2 ties, parameters 40 -> 20 (50.0%)\n")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit, match="2"):
        patch.setattr(sys, "argv", ["fxtie", "plan", "nets:net", "--rules", "no.toml"])
        runpy.run_module("fxtie", run_name="__main__")


def test_a_reader_that_leaves_is_no_error(nets):
    command = [sys.executable, "-m", "fxtie", "suggest", "nets:net"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b"building\n"
    assert process.returncode == 0


def test_a_real_model(capsys):
    assert main(["suggest", "vision_models:resnet50"]) == 0
    with torch.device("meta"):
        model = import_torchvision().models.resnet50()
    assert capsys.readouterr().out == f"{suggest(model)}\n"

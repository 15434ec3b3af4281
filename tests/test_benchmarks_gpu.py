"""The benchmarks of a GPU, tried out on the CPU: the same code, the same rows, at small sizes."""

import argparse
import copy
import functools
import json
import subprocess
import sys
import time

import gpu
import gpu_tests
import pytest
import torch
from figures import Figure, Ratio
from gpu_cases import GOALS, LARGE, MODES, SECTIONS, Setting, cases, figure, largest, longest
from gpu_derivations import Squares, foreach, pairs, together
from gpu_device import Device
from gpu_report import NEVER, PARTS, columns, of_a_gpu, page, verdict, write_docs
from gpu_results import (
    CUT_OFF,
    DONE,
    FAILED,
    Attempt,
    Outcome,
    Results,
    append,
    append_figure,
    read,
)
from speed_models import decoder
from speed_peers import Contender, TrainStep, tied
from torch import fx, nn

RATIO = Ratio(0.5, 0.4, 0.6, 9)


# -- a whole run ----------------------------------------------------------------------------------


def dry(test):
    """Mark a test of the dry run, which compiles."""
    return pytest.mark.slow(pytest.mark.timeout(900)(test))


def command(out, *more):
    return [
        *(sys.executable, gpu.__file__, "--device", "cpu", "--small", "--seconds", "0"),
        *("--limit", "800", "--out", str(out), *more),
    ]


@pytest.fixture(scope="module")
def dry_run(tmp_path_factory):
    """The file that a run of everything writes."""
    out = tmp_path_factory.mktemp("gpu") / "gpu.jsonl"
    run = subprocess.run(command(out), capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    return out


@dry
def test_a_run_does_all_cases_and_measures_all_that_the_page_tells(dry_run):
    (results,) = read(dry_run)
    assert list(results.attempts) == [case.name for case in cases(small=True)]
    assert all(results.is_done(name) for name in results.attempts)
    figures = [f for name in results.attempts for f in results.case(name).figures]
    told = {what for whats in PARTS.values() for what in whats if "compiled" not in what}
    assert {f.what for f in figures} == told
    assert all(any(goal.is_of(f) for f in figures) for goal in GOALS if "compiled" not in goal.what)
    outcomes = results.case("tests").tests
    assert outcomes and {outcome.word for outcome in outcomes.values()} == {"passed"}
    assert all("[cpu" in name for name in outcomes)


@dry
def test_what_is_done_is_not_run_again(dry_run):
    before = dry_run.read_text()
    assert subprocess.run(command(dry_run), capture_output=True).returncode == 0
    (added,) = dry_run.read_text().removeprefix(before).splitlines()
    assert "run" in json.loads(added)


@dry
def test_the_page_of_a_run(dry_run, tmp_path):
    """A run on the CPU tells nothing; the same rows, said to be of a GPU, are tables and plots."""
    pytest.importorskip("matplotlib", reason="plots need the extra bench")
    write_docs(read(dry_run), tmp_path)
    assert NEVER in (tmp_path / "gpu.md").read_text()
    assert not list(tmp_path.glob("*.png"))

    results = read(dry_run)
    results[0].environment |= {"type": "cuda", "small": False, "device": "Some GPU"}
    tests = results[0].attempts["tests"][0].tests
    passed = len(tests)
    tests["a test"] = Outcome("failed", "because")
    write_docs(results, tmp_path)
    text = (tmp_path / "gpu.md").read_text()
    assert NEVER not in text and "Some GPU" in text and results[0].commits[0] in text
    assert all(f"## {heading}" in text for heading in (*PARTS, "Goals", "Tests", "What ran"))
    assert "Not measured:\n\n* train step, compiled: fxtie / hand-linked <= 1" in text
    assert "not begun" in text  # the large cases
    assert f"{passed} passed, 1 failed.\n\n* `a test`, failed: because\n" in text
    for name in ("gpu.png", "gpu-memory.png"):
        assert name in text
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_the_page_is_what_the_results_say():
    page_now = (gpu.ROOT / "docs/gpu.md").read_text(encoding="utf-8")
    assert page_now == page(of_a_gpu(read(gpu.RESULTS)))


# -- the order and the time of cases --------------------------------------------------------------


def test_cases_come_in_the_order_of_their_worth():
    found = cases(small=False)
    assert list(dict.fromkeys(case.section for case in found)) == list(SECTIONS)
    assert sum(SECTIONS.values()) == pytest.approx(1)
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    assert names[1 : 1 + len(MODES) * len(LARGE)] == [f"{n}, {m}" for m in MODES for n in LARGE]
    assert [case.name for case in found if case.ahead] == [
        *(f"{name}, CUDA graphs" for name in LARGE),
        "derivations",
    ]


class Schedule:
    """Runs cases by a clock of its own."""

    def __init__(self, takes, limit=1000.0):
        self.now, self.over, self.ran = 0.0, set(), []
        every = cases(small=True)
        self.names = [case.name for case in every]
        is_over = lambda case: case.name in self.over  # noqa: E731
        for case, seconds in gpu.turns(every, limit, is_over, lambda: self.now):
            took = takes.get(case.name, 10.0)
            self.now += min(took, seconds)
            self.ran.append(case.name)
            if took <= seconds:
                self.over.add(case.name)
        assert self.now <= limit


def test_a_case_that_takes_too_long_is_cut_off_and_tried_last():
    found = Schedule({"tests": 400.0})  # its part are 300 seconds
    assert found.ran == [*found.names, "tests"]
    assert found.over == set(found.names)


def test_each_section_has_its_part_of_the_time():
    endless = ["tests", "chain, eager", "derivations"]
    found = Schedule(dict.fromkeys(endless, 5000.0))
    # What was not begun goes before what was cut off.
    assert found.ran == [
        *("tests", "chain, eager", "chain, memory", "derivations", "longest"),
        *("chain, CUDA graphs", "tests"),
    ]
    assert found.over == {*found.names} - {*endless}


def test_with_little_time_what_is_worth_most_is_run():
    assert Schedule({}, limit=20.0).ran == ["tests"]
    assert Schedule({}, limit=10.0).ran == []


# -- processes ------------------------------------------------------------------------------------


@pytest.fixture
def runner(tmp_path, monkeypatch):
    """Runs a piece of Python in the place of a case."""
    out = tmp_path / "gpu.jsonl"
    append(out, {"run": {"type": "cpu"}, "commit": "c"})
    found = gpu.Runner(argparse.Namespace(out=out, seconds=0))

    def run(code, seconds=60.0):
        monkeypatch.setattr(found, "command", lambda *_: [sys.executable, "-c", code])
        (case,) = (case for case in cases(small=True) if case.name == "longest")
        ended = found.run(case, seconds)
        attempt = read(out)[0].attempts["longest"][-1]
        assert attempt.ended == ended
        return attempt

    return run


def test_a_crash_is_told(runner):
    attempt = runner("import os, sys; print('why', file=sys.stderr, flush=True); os.abort()")
    assert (attempt.ended, attempt.log) == (FAILED, "why")


def test_a_hang_is_cut_off_with_all_that_it_has_started(runner, tmp_path):
    alive = tmp_path / "alive"
    child = f"import time, pathlib; time.sleep(4); pathlib.Path({str(alive)!r}).touch()"
    attempt = runner(
        f"import subprocess, sys, time; subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "time.sleep(60)",
        seconds=2,
    )
    assert attempt.ended == CUT_OFF and attempt.seconds < 30
    time.sleep(4)
    assert not alive.exists()


@pytest.mark.parametrize("over", [{"derivations"}, {"derivations", "tests"}])
def test_what_is_slow_to_compile_is_compiled_beside_the_tests(over, tmp_path, monkeypatch):
    """Or before all else, where the tests are over. Only what is still to be done."""
    runs = tmp_path / "runs"
    found = gpu.Runner(argparse.Namespace(out=tmp_path / "gpu.jsonl", seconds=0, limit=200))

    def command(case, out, seconds):
        which = "beside" if out.name == "null" else "run"
        return ["sh", "-c", f"echo {case.name}, {which} >> {runs}"]

    monkeypatch.setattr(found, "command", command)
    found.run_all(cases(small=True), set(over))
    lines = runs.read_text().splitlines()
    assert lines.count("chain, CUDA graphs, beside") == lines.count("chain, CUDA graphs, run") == 1
    assert lines.index("chain, CUDA graphs, beside") < lines.index("chain, eager, run")
    assert len(lines) == 1 + len(cases(small=True)) - len(over)


def test_a_case_needs_nothing_that_may_be_missing(tmp_path):
    """Beside torch and pytest: neither what draws tables and plots, nor models of others."""
    out = tmp_path / "gpu.jsonl"
    append(out, {"run": {"type": "cpu"}, "commit": "c"})
    append(out, {"case": "chain, memory", "began": "now"})
    argv = command(out, "--case", "chain, memory")[1:]
    missing = ["tabulate", "matplotlib", "torchvision", "timm", "tqdm", "xdist", "pytest_timeout"]
    code = (
        f"import sys, runpy; sys.argv = {argv!r}; sys.modules |= dict.fromkeys({missing!r})\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    assert read(out)[0].attempts["chain, memory"][0].figures


# -- tests of a device ----------------------------------------------------------------------------


def test_outcomes_of_tests_are_rows_and_passed_ones_are_not_run_again(tmp_path, monkeypatch):
    file, out = tmp_path / "test_some.py", tmp_path / "gpu.jsonl"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('device', ['cpu', 'tpu'])\n"
        "def test_good(device): pass\n"
        "@pytest.mark.parametrize('device', ['cpu'])\n"
        "def test_bad(device): raise ValueError('because')\n"
        "@pytest.mark.parametrize('device', ['cpu'])\n"
        "def test_left_out(device): pytest.skip('not here')\n"
    )
    (tmp_path / "test_broken.py").write_text("import no_such_module")
    monkeypatch.setattr(gpu_tests, "FEW", (str(tmp_path),))
    append(out, {"run": {"type": "cpu"}, "commit": "c"})

    def attempt():
        append(out, {"case": "tests", "began": "now"})
        environment = {"PYTHONPATH": str(gpu.ROOT / "benchmarks")}
        run = subprocess.run(
            gpu_tests.command("cpu", True, out), env=environment, cwd=gpu.ROOT, capture_output=True
        )
        assert run.returncode in gpu.good_codes(cases(small=True)[0]), run.stdout
        tests = read(out)[0].attempts["tests"][-1].tests
        return {name.rpartition("/")[2]: outcome for name, outcome in tests.items()}

    first, second = attempt(), attempt()
    assert first.pop("test_some.py::test_good[cpu]") == ("passed", "")
    assert first.keys() == second.keys()
    assert first.pop("test_broken.py").word == "not collected"
    assert first == {
        "test_some.py::test_bad[cpu]": ("failed", "ValueError: because"),
        "test_some.py::test_left_out[cpu]": ("skipped", "not here"),
    }


# -- results --------------------------------------------------------------------------------------


def test_a_line_that_was_cut_off_spoils_no_other(tmp_path):
    out = tmp_path / "gpu.jsonl"
    found = figure("inference, eager", "net, batch 1", "fxtie", "untied", RATIO)
    append(out, {"run": {"type": "cpu"}, "commit": "c"})
    append(out, {"case": "a", "began": "now"})
    with out.open("a") as file:
        file.write('{"case": "a", "fig')
    append_figure(out, "a", found)
    (results,) = read(out)
    assert results.case("a") == Attempt(figures=[found], ended=CUT_OFF)
    assert found.goal == 1.0


def test_results_of_unlike_devices_are_apart_and_the_last_comes_last(tmp_path):
    out = tmp_path / "gpu.jsonl"
    for device, commit in (("a", "1"), ("b", "1"), ("a", "2"), ("a", "2")):
        append(out, {"run": {"type": "cuda", "small": False, "device": device}, "commit": commit})
    assert [(r.environment["device"], r.commits) for r in read(out)] == [
        ("b", ["1"]),
        ("a", ["1", "2"]),
    ]
    append(out, {"run": {"type": "cuda", "small": True, "device": "c"}, "commit": "1"})
    append(out, {"run": {"type": "cpu", "small": False, "device": "d"}, "commit": "1"})
    assert of_a_gpu(read(out)).environment["device"] == "a"


def test_the_try_that_counts():
    def attempt(figures, ended, **tests):
        return Attempt([Figure("w", "w", "s", "", RATIO)] * figures, dict(tests), ended)

    tries = [attempt(2, FAILED, a="x", b="x"), attempt(1, CUT_OFF, b="y")]
    results = Results({}, attempts={"case": tries})
    assert len(results.case("case").figures) == 2
    assert results.case("case").tests == {"a": "x", "b": "y"}
    assert not results.is_done("case")
    tries += [attempt(1, DONE), attempt(3, CUT_OFF)]
    assert results.case("case").ended == DONE
    assert results.case("other") is None and not results.is_done("other")


# -- figures --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("what", "workload", "against", "goal"),
    [
        ("train step, compiled", "net, batch 1", "untied", 0.85),
        ("train step, compiled", "net, batch 64", "untied", None),
        ("train step, compiled", "net, batch 64", "hand-linked", 1.0),
        ("train step, eager", "net, batch 1", "untied", None),
        ("peak memory saved", "net, batch 1", "untied", 3.0),
    ],
)
def test_goals(what, workload, against, goal):
    assert figure(what, workload, "fxtie", against, RATIO).goal == goal


@pytest.mark.parametrize("most", [0, 1, 2, 7, 8, 100])
def test_largest(most):
    assert largest(lambda n: n <= most) == most


def test_a_table_has_a_column_for_each_way_and_each_pair():
    figures = [
        Figure("what", "net", "fxtie", "untied", RATIO),
        Figure("what", "net", "fxtie", "", Ratio(12.5, 12.5, 12.5, 1), unit="ms"),
        Figure("else", "net", "fxtie", "", RATIO),
    ]
    header, _, row = columns(figures, "what").splitlines()
    assert [cell.strip() for cell in header.strip("|").split("|")] == [
        "what",
        "fxtie, ms",
        "fxtie / untied",
    ]
    assert [cell.strip() for cell in row.strip("|").split("|")] == [
        "net",
        "12.5",
        "0.500 (0.400 - 0.600)",
    ]


@pytest.mark.parametrize(("ratio", "said"), [(0.94, "is worth"), (0.96, "is not worth")])
def test_one_call_for_many_is_worth_building_by_more_than_a_twentieth(ratio, said):
    ratios = {"a": 1.2, "b": ratio}
    figures = [
        Figure("train step, many ties", "net", name, "one by one", Ratio(r, r, r, 1))
        for name, r in ratios.items()
    ]
    assert f"{said} building" in verdict(figures) and "*b*" in verdict(figures)


def test_many_derivations_as_one_compute_and_train_the_same():
    workload = pairs(3, 4)
    x, expected, found = workload.inputs(2), tied(workload), together(tied(workload), foreach)
    assert sum(node.target is torch.square for node in expected.graph.nodes) == 3
    assert not any(node.target is torch.square for node in found.graph.nodes)
    for model in (expected, found):
        model(x).sum().backward()
    assert torch.equal(found(x), expected(x))
    for name, parameter in expected.named_parameters():
        torch.testing.assert_close(found.get_parameter(name).grad, parameter.grad)
    assert torch.autograd.gradcheck(Squares.apply, [torch.randn(2, 2).double().requires_grad_()])


# -- devices --------------------------------------------------------------------------------------


def test_time_of_the_gpu_is_summed_from_event_to_event(monkeypatch):
    milliseconds = iter([5.0, 15.0, 40.0])

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(milliseconds)
            self.is_over = False

        def synchronize(self):
            self.is_over = True

        def elapsed_time(self, later):
            assert later.is_over
            return later.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    clock = Device("cuda").clock()
    assert [clock(), clock()] == pytest.approx([0.010, 0.035])


def test_the_peak_of_the_gpu_is_that_of_the_step_alone(monkeypatch):
    calls = []
    for name in ("synchronize", "reset_peak_memory_stats"):
        monkeypatch.setattr(torch.cuda, name, lambda name=name: calls.append(name))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: calls.append("ask") or 100)
    assert Device("cuda").peak(lambda: calls.append("step"), before=30) == 70
    assert calls == ["synchronize", "reset_peak_memory_stats", "step", "synchronize", "ask"]


def test_what_runs_out_of_memory_does_not_fit(monkeypatch):
    def peak(self, step, before):
        tokens, tied = step.x.shape[1], isinstance(step.model, fx.GraphModule)
        if tokens + (0 if tied else 50) > 100:
            raise torch.OutOfMemoryError
        return 0

    monkeypatch.setattr(Device, "peak", peak)
    monkeypatch.setattr(Device, "free", lambda self: None)  # takes its time
    make = functools.partial(decoder, depth=2, width=8, heads=1)
    figures = longest(make, 2**20, 4, Setting(Device("cpu"), seconds=0))
    found = {f.subject: f.ratio.median for f in figures if f.unit == "tokens"}
    assert found == {"untied": 48, "fxtie": 100, "recompute": 100}


def test_kernels(device):
    x = torch.randn(4, device=device)
    x + x  # loads what is loaded once
    assert Device(device.type).kernels(lambda: (x + x) * x) == 2


def test_peak(device):
    found, peaks = Device(device.type), []
    for width in (1000, 1000, 2000):  # the first makes what libraries keep for themselves
        layer = nn.Linear(width, width, bias=False)
        found.free()
        before = found.allocated()
        model, x = copy.deepcopy(layer).to(device), torch.ones(1, width).to(device)
        step = TrainStep(Contender(model), x)
        step()
        peaks.append(found.peak(step, before))
        del step, model, x
    more = (2000**2 - 1000**2) * 4
    # A weight, its gradient and two states, and what Adam needs for a moment.
    assert 4 * more <= peaks[2] - peaks[1] < 8 * more


def test_the_clock_goes_on_while_the_device_works(device):
    clock = Device(device.type).clock()
    x = torch.randn(500, 500, device=device)
    start = clock()
    for _ in range(20):
        x @ x
    assert 0 < clock() - start < 60


def test_a_workload_is_on_the_device(device):
    setting = Setting(Device(device.type), seconds=0)
    workload = setting.workload(lambda: pairs(2, 8))
    x = setting.inputs(workload, 3)
    assert x.device.type == device.type and x.shape == (3, 8)
    assert workload.name == "2 equal ties (288)"
    assert {p.device.type for p in workload.model.parameters()} == {device.type}

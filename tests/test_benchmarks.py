"""The speed benchmarks: what they measure is what they say. No figure of theirs is asserted on."""

import pytest
import speed
import torch
from figures import Figure, Ratio
from measure import instructions, interleave, peak_bytes, stored_bytes
from speed_figures import compare_outputs, memory, micro_batches
from speed_models import WORKLOADS, Options
from speed_peers import TrainStep, contenders
from speed_report import table, write_docs

QUICK = Options(seconds=0, quick=True)


class Clock:
    """A clock that only moves when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def spends(self, seconds):
        def call():
            self.now += seconds

        return call


def test_interleave_gives_the_ratio_of_the_times():
    clock = Clock()
    calls = {"a": clock.spends(0.5), "b": clock.spends(2.0)}
    ratio = interleave(calls, 0, least_rounds=7, clock=clock).ratio("a", "b")
    assert ratio == Ratio(median=0.25, low=0.25, high=0.25, samples=7)


def test_what_short_calls_repeat_does_not_count():
    clock = Clock()
    calls = {"a": clock.spends(0.001), "b": clock.spends(1.0)}
    assert interleave(calls, 0, clock=clock).seconds("a") == pytest.approx(0.001)


def test_peak_bytes_are_exact():
    def call():
        first = torch.empty(1000)
        second = torch.empty(2000)
        del first
        return second, torch.empty(500)

    assert peak_bytes(call) == 3000 * 4


def test_stored_bytes_count_a_storage_once():
    tensor = torch.empty(10)
    assert stored_bytes(tensor, tensor[2:], torch.empty(5)) == 15 * 4


def test_instructions_repeat_and_grow_with_the_work():
    def work(n):
        return lambda: sum(i * i for i in range(n))

    assert instructions(work(100)) == instructions(work(100))
    assert 1.8 < instructions(work(2000)) / instructions(work(1000)) < 2.2


@pytest.mark.parametrize("name", ["16 blocks", "100 targets", "chain of 50", "decoder"])
def test_all_ways_to_tie_compute_and_train_the_same(name):
    workload = WORKLOADS[name]()
    x, ways = workload.inputs(2), contenders(workload)
    compare_outputs(ways, x)
    sizes = {}
    for who, way in ways.items():
        step = TrainStep(way, x)
        step()
        trained = [p for group in step.optimizer.param_groups for p in group["params"]]
        sizes[who] = sum(p.numel() for p in trained)
    untied = sizes.pop("untied")
    assert len(set(sizes.values())) == 1 and sizes["fxtie"] < untied / 2


def test_derive_once_evaluates_once():
    counts = {f.subject: f.ratio.median for f in micro_batches(QUICK) if "evaluated" in f.what}
    assert counts == {"fxtie": 8, "derive_once": 1}


def test_a_tied_model_saves_memory():
    saved = {f.subject: f.ratio.median for f in memory(QUICK) if "saved" in f.what}
    assert saved["fxtie"] > saved["hand-linked"] > 2


@pytest.mark.parametrize(
    ("figure", "met"),
    [
        ({}, None),
        ({"goal": 1.0}, False),
        ({"goal": 1.0, "within_spread": True}, True),
        ({"goal": 1.2}, True),
        ({"goal": 1.0, "at_least": True}, True),
        ({"goal": 1.2, "at_least": True}, False),
    ],
)
def test_goals(figure, met):
    assert Figure("what", "w", "s", "", Ratio(1.1, 0.9, 1.3, 5), **figure).met is met


def figures():
    ratio = Ratio(0.5, 0.4, 0.6, 9)
    return [
        Figure("train step, eager", "net", "fxtie", "untied", ratio, 0.9),
        Figure("train step, eager", "net", "hand-linked", "untied", ratio),
        Figure("import", "torch", "fxtie", "", Ratio(60.0, 55.0, 65.0, 3), 50.0, unit="ms"),
    ]


def test_results_are_read_as_written(tmp_path):
    speed.write(tmp_path / "out.jsonl", {"train": figures()[:2], "imports": figures()[2:]})
    assert speed.read(tmp_path / "out.jsonl") == {"train": figures()[:2], "imports": figures()[2:]}


def test_the_table_tells_what_is_met():
    met, told, missed = table(figures(), "plain", headers=False).splitlines()
    assert "0.400 - 0.600" in met and met.endswith("met") and "not met" not in met
    assert told.rstrip().endswith("0.600")
    assert "60.0 ms" in missed and missed.endswith("not met")


def test_docs(tmp_path):
    pytest.importorskip("matplotlib", reason="plots need the extra bench")
    write_docs(figures(), tmp_path)
    assert "1 of 2 are met" in (tmp_path / "speed.md").read_text()
    assert (tmp_path / "speed.png").read_bytes().startswith(b"\x89PNG")


def test_a_pass_that_takes_more_instructions_is_told(monkeypatch):
    monkeypatch.setattr(speed.instructions, "committed", lambda: {"a": 1000, "b": 1000})
    (line,) = speed.instructions.grown({"a": 1050, "b": 1200})
    assert line.startswith("b: 1,200 instructions, 1.20 times")

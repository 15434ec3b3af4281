"""The table of docs/compat.md: one column for each torch version, from runs that were kept."""

from compat.table import PAGES, Run
from compat.table import markdown as written


def markdown(runs):
    return written(runs, PAGES["compat"])


ROW = ("tool", "what is tried", "cpu")


def run(torch, python, outcome, device="cpu"):
    return Run({"Python": python, "torch": torch}, {(*ROW[:2], device): {outcome}})


def cells(page):
    """The row of `ROW`."""
    (row,) = [line for line in page.splitlines() if line.startswith("| tool   | what is tried")]
    return [cell.strip() for cell in row.strip("|").split("|")][2:]


def test_a_run_is_read_as_it_was_written(tmp_path):
    outcomes = {ROW: {("works", None), ("not tried", "why")}}
    path = Run({"Python": "3.13.0", "torch": "2.15.0+cu132"}, outcomes).write(tmp_path)
    assert path.name == "torch-2.15.0-python-3.13.json"
    assert Run.read(path).outcomes == outcomes


def test_versions_are_columns_in_their_order():
    page = markdown(
        [run("2.13.0+cpu", "3.11.7", ("works", None)), run("2.9.1", "3.10.1", ("FAILS", None))]
    )
    assert cells(page) == ["FAILS", "works"]
    assert page.index("torch 2.9.1, CPU") < page.index("torch 2.13.0, CPU")
    assert "None had a CUDA device" in page


def test_runs_of_one_torch_share_a_column():
    same = [run("2.9.1", python, ("works", None)) for python in ("3.13.0", "3.10.1")]
    page = markdown(same)
    assert cells(page) == ["works"]
    assert "3.10.1, 3.13.0" in page
    other = run("2.9.1", "3.11.7", ("does not", "a reason"))
    assert cells(markdown([*same, other])) == ["does not (1), works"]


def test_a_device_without_results_has_no_column():
    tried = run("2.9.1", "3.10.1", ("works", None))
    skipped = run("2.9.1", "3.10.1", ("not tried", "no CUDA device"), "cuda")
    assert "CUDA |" not in markdown([tried, skipped])
    assert (
        cells(markdown([tried, run("2.9.1", "3.10.1", ("works", None), "cuda")])) == ["works"] * 2
    )

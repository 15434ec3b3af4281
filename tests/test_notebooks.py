"""docs/notebooks: each notebook is its source, runs in a fresh kernel, and shows what that gave.

The source is a Python file in cells. `FXTIE_RENEW=1` writes the notebook of it.
"""

import os
from pathlib import Path

import jupytext
import nbformat
import pages
import pytest
import torch
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "docs/notebooks"


def made_of(source):
    """A notebook without outputs, whose cells are numbered: new ones would have names by chance."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = str(number)
    notebook.metadata = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }
    return notebook


def printed(notebook):
    """Of each cell of code, what it prints and shows as text."""
    return [
        "".join(out["text"] if "text" in out else out["data"]["text/plain"] for out in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code"
    ]


@pytest.mark.parametrize("source", sorted(NOTEBOOKS.glob("*.py")), ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_gave(source, tmp_path, monkeypatch):
    if torch.__version__ < "2.10":
        pytest.skip("torch 2.9 prints layers in other words")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))  # not the user's own
    notebook = made_of(source)
    sources = [cell.source for cell in notebook.cells]
    where = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(notebook, resources=where, record_timing=False).execute()
    path = source.with_suffix(".ipynb")
    if os.environ.get("FXTIE_RENEW"):
        nbformat.write(notebook, path)
    shown = nbformat.read(path, as_version=4)
    assert [cell.source for cell in shown.cells] == sources
    for now, then in zip(printed(notebook), printed(shown), strict=True):
        assert pages.is_about(now, then), now

"""Exceptions that carry a list of faults, and hints of names."""

import pickle

from fxtie.errors import PlanError, closest


def test_one_fault_is_the_text_and_several_are_numbered():
    assert str(PlanError("no good")) == "no good"
    error = PlanError(["first", "second", "first"])
    assert error.faults == ("first", "second")
    assert str(error) == "2 faults in the rules:\n  1. first\n  2. second"


def test_a_copy_has_the_faults():
    """Executors hand errors of other processes on as pickles."""
    error = PlanError(["first", "second"])
    again = pickle.loads(pickle.dumps(error))
    assert (again.faults, str(again)) == (error.faults, str(error))


def test_names_that_are_close_are_offered():
    assert closest("conv1", ["conv_1", "head"]) == " Closest names: 'conv_1'."
    assert closest("conv1", ["head"]) == ""

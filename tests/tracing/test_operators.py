"""Python's operators, and unpacking."""

import ast
import operator

import einops  # noqa: F401  # programs may import only what is imported
import pytest
from gate_rows import root_is_kept, title
from two_linears import check, model_with

from fxtie.tracing import operators

BINARY = (
    {
        kind: f"x = x.clone() {symbol} 2"
        for kind, symbol in {
            ast.Add: "+",
            ast.Div: "/",
            ast.FloorDiv: "//",
            ast.Mod: "%",
            ast.Mult: "*",
            ast.Pow: "**",
            ast.Sub: "-",
        }.items()
    }
    | {
        kind: f"x = x * (self.scale {symbol} 3)"
        for kind, symbol in {
            ast.BitAnd: "&",
            ast.BitOr: "|",
            ast.BitXor: "^",
            ast.LShift: "<<",
            ast.RShift: ">>",
        }.items()
    }
    | {ast.MatMult: "x = x @ self.a.weight"}
)


@pytest.mark.parametrize("row", operators.BINARY, ids=title)
def test_operators(row):
    assert not root_is_kept(BINARY[row])


@pytest.mark.parametrize("name", ["add", "sub", "mul", "truediv", "floordiv", "mod", "pow"])
def test_augmented_assignment_changes_its_left_side(name):
    augmented = getattr(operator, f"i{name}")

    def forward(self, x):
        x = self.b(self.a(x)).detach()
        y, n = x, x.shape[0]
        y = augmented(y, 2)
        n += 1
        return x.flip(0) * self.a.weight[0] * n + y

    assert not check(model_with(forward)).kept


def test_unpacking():
    def forward(self, x):
        first, second = self.b(self.a(x)).chunk(2, -1)
        (high, at), _ = first.max(dim=-1), second
        return high + at * second.sum(-1)

    assert not check(model_with(forward)).kept


def test_items_are_counted():
    assert operators.unpack(iter("ab"), 2) == ("a", "b")
    with pytest.raises(ValueError, match="expected 2 values to unpack, got 3"):
        operators.unpack("abc", 2)

"""Python functions -> code that does the same, and asks the gate for each operation.

In: a function. Out: one whose code has a call of the gate in place of each operation on a value.
Python itself does the rest: control flow, local variables, arguments. A construct that has no
`visit_` method here becomes a call that stops the trace.
"""

from __future__ import annotations

import ast
import functools
import itertools
import pickle
from collections.abc import Callable, Iterator
from types import CodeType, FunctionType
from typing import Any, TypeVar

from fxtie.tracing.operators import BINARY, IN_PLACE, UNARY
from fxtie.tracing.scope import Gate, Scope
from fxtie.tracing.source_code import FunctionNode, function_node
from fxtie.tracing.stops import Stop

Node = TypeVar("Node", bound=ast.AST)
Store = tuple[ast.expr, ast.expr]
"""What to assign to, and what."""


def rewritten(function: FunctionType, gate: Gate) -> FunctionType:
    """A function that does what another one does, and asks the gate for each operation.

    Raises:
        Stop: if there is no source code that is sure to be what runs.
    """
    try:
        code = _code(function_node(function), function.__code__.co_filename)
    except (SyntaxError, RecursionError) as error:
        raise Stop(f"runs {function.__name__}, which can't be rewritten: {error}") from error
    defaults = tuple(map(gate.taken_outside, function.__defaults__ or ()))
    made = FunctionType(code, Scope(gate, function), function.__name__, defaults)
    by_name = function.__kwdefaults__ or {}
    made.__kwdefaults__ = {name: gate.taken_outside(value) for name, value in by_name.items()}
    return made


@functools.lru_cache(maxsize=4096)
def _code(node: FunctionNode, file: str) -> CodeType:
    own = _copied(node)
    own.args.defaults, own.args.kw_defaults = [], [None] * len(own.args.kwonlyargs)
    body: Any = [ast.Return(own.body)] if isinstance(own, ast.Lambda) else own.body
    name = getattr(own, "name", "<lambda>")
    function = Rewriter(file).function(ast.FunctionDef(name, own.args, body, []))
    for inner in ast.walk(node):
        if isinstance(inner, ast.Global | ast.Nonlocal):  # for all of it, wherever it stands
            function.body = [ast.copy_location(ast.Expr(_cannot_hold("a statement", inner)), inner)]
    module = ast.Module([ast.copy_location(function, node)], [])
    code = compile(ast.fix_missing_locations(module), file, "exec", dont_inherit=True)
    return next(constant for constant in code.co_consts if isinstance(constant, CodeType))


def _rewriting(rewrite: Callable[[Any], Any]) -> Any:
    """Rewrites a construct after those inside of it."""
    return lambda rewriter, node: rewrite(rewriter.generic_visit(node))


class Rewriter(ast.NodeTransformer):
    """Rewrites one function: an expression as another one, a statement as several.

    Names that it adds have a dot, so that they are none of the user's. `Scope` holds them.
    """

    def __init__(self, file: str) -> None:
        self.file = file
        self.count = 0
        self.instance: ast.expr | None = None  # the first argument, for `super()`

    def visit(self, node: ast.AST) -> Any:
        if visit := vars(Rewriter).get(f"visit_{type(node).__name__}"):
            new = visit(self, node)
        elif isinstance(node, ast.stmt):
            new = ast.Expr(_cannot_hold("a statement", node)), _unreachable(node)
        elif isinstance(node, ast.expr):
            new = ast.IfExp(ast.Constant(True), _cannot_hold("an expression", node), node)
        else:
            new = self.generic_visit(node)
        parts = [new] if isinstance(new, ast.AST) else [*new]
        for part in parts:
            ast.copy_location(part, node)
        return new if isinstance(new, ast.AST) else parts

    # -- what Python does by itself, with operations inside of it -------------------------------

    visit_Pass = visit_Break = visit_Continue = visit_Expr = visit_Return = _rewriting(lambda s: s)
    visit_Constant = visit_Name = visit_JoinedStr = _rewriting(lambda e: e)
    visit_NamedExpr = _rewriting(lambda e: e)

    # -- functions ------------------------------------------------------------------------------

    def visit_arguments(self, args: ast.arguments) -> Any:
        for arg in ast.walk(args):
            if isinstance(arg, ast.arg):
                arg.annotation = None
        return self.generic_visit(args)

    def visit_FunctionDef(self, s: ast.FunctionDef) -> Any:
        if s.decorator_list:
            return ast.Expr(_gate("stop", f"decorates {s.name}")), _unreachable(s)
        return self.function(s)

    def function(self, s: ast.FunctionDef) -> ast.FunctionDef:
        s.returns = None
        names = [_name(argument.arg) for argument in (*s.args.posonlyargs, *s.args.args)]
        instance, self.instance = self.instance, names[0] if names else None
        self.generic_visit(s)
        self.instance = instance
        if s.args.kwarg:  # a dict that Python makes
            s.body.insert(0, ast.Expr(_gate("fresh", _name(s.args.kwarg.arg))))
        return s

    def visit_Lambda(self, e: ast.Lambda) -> Any:
        self.generic_visit(e)
        if e.args.kwarg:
            parts = ast.Tuple([_gate("fresh", _name(e.args.kwarg.arg)), e.body], ast.Load())
            e.body = ast.Subscript(parts, ast.Constant(1), ast.Load())
        return e

    # -- assignments ----------------------------------------------------------------------------

    def visit_Assign(self, s: ast.Assign) -> Any:
        target, stores = self.target(*s.targets)
        return ast.Assign([target], self.visit(s.value)), *_assigned(stores)

    def visit_AnnAssign(self, s: ast.AnnAssign) -> Any:
        if s.value is None:
            return _unreachable(s)
        return self.visit_Assign(ast.Assign([s.target], s.value))

    def visit_AugAssign(self, s: ast.AugAssign) -> Any:
        function, value = _operator(IN_PLACE[type(s.op)]), self.visit(s.value)
        if isinstance(s.target, ast.Name):
            yield ast.Assign([s.target], _gate("binary", function, _name(s.target.id), value))
        elif isinstance(s.target, ast.Subscript):
            container, key = self.temporary(), self.temporary()
            item, label = (_name(container), _name(key)), ast.unparse(s.target.value)
            yield ast.Assign([_stored(container)], self.visit(s.target.value))
            yield ast.Assign([_stored(key)], self.visit(s.target.slice))
            result = _gate("binary", function, _gate("subscript", *item, label), value)
            yield ast.Expr(_gate("store_item", result, *item))
        else:
            yield ast.Expr(_gate("stop", f"sets an attribute: {_line(s)}"))

    def target(self, *targets: ast.expr) -> tuple[ast.expr, list[Store]]:
        """What to assign a value to at first, and what then to assign to what."""
        if len(targets) == 1 and isinstance(targets[0], ast.Name):
            return targets[0], []
        name = self.temporary()
        return _stored(name), [store for target in targets for store in self.stores(target, name)]

    def stores(self, target: ast.expr, name: str) -> Iterator[Store]:
        """What to assign to what, so that the value of a variable gets into a target."""
        value = _name(name)
        if isinstance(target, ast.Name):
            yield target, value
        elif isinstance(target, ast.Tuple | ast.List):
            stars = [i for i, e in enumerate(target.elts) if isinstance(e, ast.Starred)]
            elements = [e.value if isinstance(e, ast.Starred) else e for e in target.elts]
            parts = [self.target(element) for element in elements]
            names = ast.Tuple([part for part, _ in parts], ast.Store())
            yield names, _gate("unpack", value, len(parts), *stars)
            for _, stores in parts:
                yield from stores
        elif isinstance(target, ast.Subscript):
            item = self.visit(target.value), self.visit(target.slice)
            yield _stored(self.temporary()), _gate("store_item", value, *item)
        else:
            yield _stored(name), _gate("stop", f"sets an attribute: {_line(target)}")

    def temporary(self) -> str:
        self.count += 1
        return f".{self.count}"

    def visit_Delete(self, s: ast.Delete) -> Any:
        stop = ast.Expr(_gate("stop", f"deletes more than a name: {_line(s)}"))
        return [ast.Delete([t]) if isinstance(t, ast.Name) else stop for t in s.targets]

    def visit_Import(self, s: ast.Import) -> Any:
        for alias in s.names:
            package = alias.name.partition(".")[0]
            module = _gate("imported", alias.name, alias.name if alias.asname else package)
            yield ast.Assign([_stored(alias.asname or package)], module)

    def visit_ImportFrom(self, s: ast.ImportFrom) -> Any:
        module = "." * s.level + (s.module or "")
        for alias in s.names:
            value = _gate("imported_from", module, alias.name, _name(".scope"))
            yield ast.Assign([_stored(alias.asname or alias.name)], value)

    # -- tests and loops ------------------------------------------------------------------------

    def with_truth(self, node: Any) -> Any:
        self.generic_visit(node)
        node.test = _gate("truth", node.test)
        return node

    visit_While = visit_IfExp = with_truth

    def visit_If(self, s: ast.If) -> Any:
        if not s.orelse and len(s.body) == 1 and isinstance(s.body[0], ast.Raise):
            return *map(ast.Expr, self.checks(s.test, False)), _unreachable(s)
        return self.with_truth(s)

    def visit_Assert(self, s: ast.Assert) -> Any:
        checks = self.checks(s.test, True) if __debug__ else ()
        return *map(ast.Expr, checks), _unreachable(s)

    def checks(self, test: ast.expr, expected: bool) -> Iterator[ast.expr]:
        """The code raises unless a test comes out as expected."""
        if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
            yield from self.checks(test.operand, not expected)
        # `assert a and b` and `if a or b: raise` are two checks.
        elif isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And) is expected:
            for part in test.values:
                yield from self.checks(part, expected)
        else:
            message = f"{ast.unparse(test)}, at {self.file}:{test.lineno}"
            yield _gate("check", _later(self.visit(test)), expected, message)

    def visit_For(self, s: ast.For) -> Any:
        s.target, stores = self.target(s.target)
        self.generic_visit(s)
        s.iter, s.body = _gate("iterate", s.iter), [*_assigned(stores), *s.body]
        return s

    def visit_comprehension(self, part: ast.comprehension) -> Any:
        part.target, stores = self.target(part.target)
        self.generic_visit(part)
        tests, part.ifs = [_gate("truth", test) for test in part.ifs], []
        part.iter, found = _gate("iterate", part.iter), [part]
        for name, value in stores:
            found.append(ast.comprehension(name, ast.Tuple([value], ast.Load()), [], 0))
        found[-1].ifs += tests
        return found

    # -- expressions ----------------------------------------------------------------------------

    visit_Attribute = _rewriting(lambda e: _gate("attribute", e.value, e.attr))
    visit_Slice = _rewriting(lambda e: _gate("slice", e.lower, e.upper, e.step))
    visit_Starred = _rewriting(lambda e: ast.Starred(_gate("iterate", e.value), ast.Load()))
    visit_BinOp = _rewriting(
        lambda e: _gate("binary", _operator(BINARY[type(e.op)]), e.left, e.right)
    )
    visit_ListComp = visit_GeneratorExp = _rewriting(lambda e: _gate("fresh", e))
    visit_Set = _rewriting(lambda e: _gate("new_set", ast.Tuple(e.elts, ast.Load())))
    visit_SetComp = _rewriting(lambda e: _gate("new_set", ast.ListComp(e.elt, e.generators)))
    visit_DictComp = _rewriting(
        lambda e: _gate("fresh", ast.DictComp(_gate("plain", e.key), e.value, e.generators))
    )
    visit_FormattedValue = _rewriting(
        lambda e: ast.FormattedValue(_gate("plain", e.value), e.conversion, e.format_spec)
    )

    def visit_Tuple(self, e: ast.Tuple) -> Any:
        return (
            _gate("joined", *self.parts(e.elts)) if _is_starred(e.elts) else self.generic_visit(e)
        )

    def visit_List(self, e: ast.List) -> Any:
        if _is_starred(e.elts):
            return _gate("joined_list", *self.parts(e.elts))
        return _gate("fresh", self.generic_visit(e))

    def parts(self, items: list[ast.expr]) -> Iterator[ast.expr]:
        """Expressions for tuples, from items of which some are starred."""
        for _, group in itertools.groupby(items, lambda e: isinstance(e, ast.Starred)):
            found = [*group]
            stars = [e.value for e in found if isinstance(e, ast.Starred)]
            yield from (_gate("starred", self.visit(value)) for value in stars)
            if not stars:
                yield ast.Tuple([*map(self.visit, found)], ast.Load())

    def visit_Dict(self, e: ast.Dict) -> Any:
        self.generic_visit(e)
        for i, key in enumerate(e.keys):
            e.keys[i] = key and _gate("plain", key)
            e.values[i] = e.values[i] if key else _gate("mapping", e.values[i])
        return _gate("fresh", e)

    def visit_Subscript(self, e: ast.Subscript) -> Any:
        label = ast.unparse(e.value)
        return _gate("subscript", self.visit(e.value), self.visit(e.slice), label)

    def visit_Call(self, e: ast.Call) -> Any:
        name = getattr(e.func, "id", getattr(e.func, "attr", ""))
        if isinstance(e.func, ast.Attribute):  # which may be a method of a traced value
            function = _gate("method", self.visit(e.func.value), name)
        else:
            function = self.visit(e.func)
        if name == "super" and not (e.args or e.keywords):
            return _gate("super_of", function, _name(".scope"), self.instance)
        if name == "_assert" and len(e.args) == 2:
            checks = ast.Tuple([*self.checks(_copied(e.args[0]), True)], ast.Load())
            args = ast.Tuple([*map(self.visit, e.args)], ast.Load())
            return _gate("asserted", function, _later(checks), _later(args))
        if _is_starred(e.args):
            call = _gate("invoke_with", function, _gate("joined", *self.parts(e.args)))
        else:
            call = _gate("invoke", function, *map(self.visit, e.args))
        for keyword in e.keywords:
            value = self.visit(keyword.value)
            given = value if keyword.arg else _gate("mapping", value)
            call.keywords.append(ast.keyword(keyword.arg, given))
        return call

    def visit_UnaryOp(self, e: ast.UnaryOp) -> Any:
        operand = self.visit(e.operand)
        if isinstance(e.op, ast.Not):
            return ast.UnaryOp(e.op, _gate("truth", operand))
        return _gate("unary", _operator(UNARY[type(e.op)]), operand)

    def visit_BoolOp(self, e: ast.BoolOp) -> Any:
        first, *others = map(self.visit, e.values)
        return _gate("boolean", isinstance(e.op, ast.Or), first, *map(_later, others))

    def visit_Compare(self, e: ast.Compare) -> Any:
        left, *others = map(self.visit, (e.left, *e.comparators))
        ops = [_of(".ast", type(op).__name__) for op in e.ops]
        if len(ops) == 1:
            return _gate("compare", *ops, left, *others)
        return _gate("comparisons", ast.Tuple(ops, ast.Load()), left, *map(_later, others))


def _is_starred(items: list[ast.expr]) -> bool:
    return any(isinstance(item, ast.Starred) for item in items)


def _name(name: str) -> ast.Name:
    return ast.Name(name, ast.Load())


def _stored(name: str) -> ast.Name:
    return ast.Name(name, ast.Store())


def _of(owner: str, name: str) -> ast.expr:
    return ast.Attribute(_name(owner), name, ast.Load())


def _gate(method: str, *args: Any) -> ast.Call:
    """A call of the gate, with expressions and constants."""
    given: Any = [arg if isinstance(arg, ast.AST) else ast.Constant(arg) for arg in args]
    return ast.Call(_of(".gate", method), given, [])


def _operator(function: Any) -> ast.expr:
    return _of(".operator", function.__name__)


def _later(e: ast.expr) -> ast.expr:
    """An expression that the gate may evaluate. Names that it binds are those of the function."""
    once = ast.Tuple([ast.Constant(None)], ast.Load())
    return ast.GeneratorExp(e, [ast.comprehension(_stored("._"), once, [], 0)])


def _assigned(stores: list[Store]) -> list[ast.stmt]:
    return [ast.Assign([name], value) for name, value in stores]


def _cannot_hold(kind: str, node: ast.AST) -> ast.expr:
    return _gate("stop", f"has {kind} that a graph can't hold: {_line(node)}")


def _unreachable(s: ast.stmt) -> ast.stmt:
    """A statement that never runs: what it binds stays a local variable."""
    return ast.If(ast.Constant(False), [s], [])


def _line(node: ast.AST) -> str:
    return ast.unparse(node).partition("\n")[0][:60]


def _copied(node: Node) -> Node:
    return pickle.loads(pickle.dumps(node))  # type: ignore[no-any-return]

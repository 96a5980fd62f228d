"""Reading kernels: the statements of a TVMScript function, run once as Python that calls TVM's builder.

    function = read(kernel.source)      # a tvm.tirx.PrimFunc, the same that tvm.script.from_source gives

TVM's own parser evaluates every expression by itself and takes longer than TVM and LLVM need for all that follows. Here
a function is rewritten into calls of the builder as a whole, and run. What kernels say is what can be said: `for` over
T's loops, `if`, `name: T.let = value`, `name = T.alloc_buffer(...)`, `buffer[index] = value`, and T's statements.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial, reduce
from typing import Any, NoReturn, cast

from irx.errors import KernelFailed

KNOWN = (ast.AnnAssign, ast.Assign, ast.Expr, ast.For, ast.If)


def read(source: str) -> Any:
    """The function that the text of a kernel defines. Raises KernelFailed for what kernels have no words for."""
    (function,) = ast.parse(source).body
    if not isinstance(function, ast.FunctionDef):
        _refuse(function)
    module = ast.fix_missing_locations(ast.Module(_Calls().of(function), []))
    words = _words()
    with words["builder"]() as builder:
        exec(compile(module, function.name, "exec"), dict(words))
    made = builder.get()
    words["verify"](made)
    return made


class _Calls(ast.NodeTransformer):
    """Statements as calls of the builder. Names hold to the end of their block, and may hide those around it."""

    def __init__(self) -> None:
        self._scopes: list[dict[str, str]] = []
        self._count = 0

    def of(self, function: ast.FunctionDef) -> list[ast.stmt]:
        """A whole function, in the frame that its decorator names."""
        with self._scope():
            arguments = [self._argument(one) for one in function.args.args]
            title = _call("title", ast.Constant(function.name))
            return [_with(function.decorator_list[0], [title, *arguments, *self._all(function.body)])]

    def visit_For(self, node: ast.For) -> ast.stmt:
        if not isinstance(node.target, ast.Name):
            _refuse(node)
        loop = self.visit(node.iter)
        with self._scope():
            target = self._new(node.target.id)
            name = _call("name", ast.Constant(node.target.id), self.visit_Name(node.target))
            return _with(loop, [name, *self._all(node.body)], target)

    def visit_If(self, node: ast.If) -> ast.stmt:
        branches = [_with(_value("then"), self._block(node.body))]
        if node.orelse:
            branches.append(_with(_value("otherwise"), self._block(node.orelse)))
        return _with(_value("when", self.visit(node.test)), branches)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.stmt:
        if not isinstance(node.target, ast.Name) or ast.unparse(node.annotation) != "T.let" or node.value is None:
            _refuse(node)
        return self._named("let", node.target.id, self.visit(node.value))

    def visit_Assign(self, node: ast.Assign) -> ast.stmt:
        (target,) = node.targets
        if isinstance(target, ast.Subscript):
            return _call("store", self.visit(target.value), self.visit(node.value), self.visit(target.slice))
        if not isinstance(target, ast.Name) or not isinstance(node.value, ast.Call):
            _refuse(node)
        return self._named("name", target.id, self.visit(node.value))

    def visit_Expr(self, node: ast.Expr) -> ast.stmt:
        return _call("state", self.visit(node.value))

    def visit_Name(self, node: ast.Name) -> ast.expr:
        if node.id == "T":
            return node
        known = next((scope[node.id] for scope in reversed(self._scopes) if node.id in scope), None)
        if known is None:
            raise KernelFailed(f"a kernel reads {node.id!r}, which nothing before defines")
        return ast.Name(known, ast.Load())

    def visit_BoolOp(self, node: ast.BoolOp) -> ast.expr:
        word = "both" if isinstance(node.op, ast.And) else "either"
        return reduce(partial(_value, word), [cast(ast.expr, self.visit(one)) for one in node.values])

    def visit_UnaryOp(self, node: ast.UnaryOp) -> ast.expr:
        operand = self.visit(node.operand)
        return _value("opposite", operand) if isinstance(node.op, ast.Not) else ast.UnaryOp(node.op, operand)

    def visit_Compare(self, node: ast.Compare) -> ast.expr:
        if len(node.ops) > 1:
            _refuse(node)
        return _value("compared", self.generic_visit(node))

    def visit_IfExp(self, node: ast.IfExp) -> NoReturn:
        _refuse(node)

    def _argument(self, one: ast.arg) -> ast.stmt:
        assert one.annotation is not None
        return self._named("argument", one.arg, one.annotation)

    def _named(self, how: str, name: str, value: ast.expr) -> ast.stmt:
        return ast.Assign([self._new(name)], _value(how, ast.Constant(name), value))

    def _new(self, name: str) -> ast.expr:
        """A place for what is `name` from here on; of its own, as Python's names outlive their blocks."""
        self._count += 1
        self._scopes[-1][name] = f"{name}__{self._count}"
        return ast.Name(self._scopes[-1][name], ast.Store())

    def _block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        with self._scope():
            return self._all(body)

    def _all(self, body: list[ast.stmt]) -> list[ast.stmt]:
        for statement in body:
            if not isinstance(statement, KNOWN):
                _refuse(statement)
        return [self.visit(statement) for statement in body]

    @contextmanager
    def _scope(self) -> Iterator[None]:
        self._scopes.append({})
        yield
        self._scopes.pop()


def _value(word: str, *operands: Any) -> ast.expr:
    return ast.Call(ast.Name(word, ast.Load()), list(operands), [])


def _call(word: str, *operands: Any) -> ast.stmt:
    return ast.Expr(_value(word, *operands))


def _with(frame: ast.expr, body: list[ast.stmt], name: ast.expr | None = None) -> ast.stmt:
    return ast.With([ast.withitem(frame, name)], body)


def _refuse(node: ast.AST) -> NoReturn:
    line = ast.unparse(node).splitlines()[0]
    raise KernelFailed(f"a kernel says {line!r}, for which there is no word", fix="write it as other kernels do")


@cache
def _words() -> Mapping[str, Callable[..., Any]]:
    """What the rewritten text calls, and what makes and checks a function."""
    import tvm
    from tvm.script.ir_builder import IRBuilder
    from tvm.script.ir_builder.base import IRBuilderFrame
    from tvm.tirx.script import builder as T

    def argument(name: str, type: Any) -> Any:
        return T.arg(name, type() if callable(type) and not isinstance(type, tvm.ir.Expr) else type)

    def let(name: str, value: Any) -> Any:
        return IRBuilder.name(name, T.Bind(value if isinstance(value, tvm.ir.Expr) else tvm.tirx.const(value)))

    def state(value: Any) -> None:
        if isinstance(value, IRBuilderFrame):  # it holds for all that follows
            value.add_callback(partial(value.__exit__, None, None, None))
            value.__enter__()
        elif value is not None:
            T.evaluate(value)

    def compared(value: Any) -> Any:
        return value if isinstance(value, tvm.ir.Expr | bool) else value.asobject()  # of `==` and `!=`

    def verify(function: Any) -> None:
        tvm.s_tir.analysis.verify_well_formed(tvm.IRModule.from_expr(function))

    return {
        "T": T,
        "title": T.func_name,
        "argument": argument,
        "name": IRBuilder.name,
        "let": let,
        "store": T.buffer_store,
        "state": state,
        "when": T.If,
        "then": T.Then,
        "otherwise": T.Else,
        "compared": compared,
        "both": T.And,
        "either": T.Or,
        "opposite": T.Not,
        "builder": IRBuilder,
        "verify": verify,
    }

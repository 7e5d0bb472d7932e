"""`register_lowering`: what an operator of the user's means to the compiler.

A Python function over ATen operators joins the decompositions, so that it is traced into the graph; a
StableHLO function travels in the payload as its text. The rewriting of graphs here is only what takes a
registered operator out of the higher-order operators that PyTorch wraps around mutation and effects."""

from __future__ import annotations

import dataclasses
import operator
import unittest.mock
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node

from . import decompositions
from ._torchtpu import TorchTPUError, lowered_targets


@dataclasses.dataclass(frozen=True)
class TensorType:
    """Dtype and shape of an operand, as a callable that makes StableHLO gets it; prints as
    `tensor<2x3xf32>`."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"tensor<{''.join(f'{d}x' for d in self.shape)}{_ELEMENTS[self.dtype]}>"


_ELEMENTS = {
    torch.bool: "i1", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.uint8: "ui8", torch.uint16: "ui16", torch.uint32: "ui32", torch.uint64: "ui64",
    torch.float8_e4m3fn: "f8E4M3FN", torch.float8_e5m2: "f8E5M2", torch.float16: "f16", torch.bfloat16: "bf16",
    torch.float32: "f32", torch.float64: "f64", torch.complex64: "complex<f32>", torch.complex128: "complex<f64>",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Lowering:
    """What was registered: one of the two."""

    fn: Callable[..., Any] | None
    stablehlo: str | Callable[..., str] | None


registered: dict[OpOverload, Lowering] = {}


def register_lowering(
    op: Any,
    fn: Callable[..., Any] | None = None,
    *,
    stablehlo: str | Callable[..., str] | None = None,
    override: bool = False,
) -> Any:
    """Gives `torch.ops.mylib.op` (or one overload of it) a lowering; a decorator where only `op` is given.

    `fn` takes what the operator takes and computes the same with PyTorch's operators; if the operator
    mutates arguments, so does it. `stablehlo` is a function `main` in MLIR's generic form whose operands
    and results are the operator's tensors in order (StableHLO's own syntax is read where jax is
    installed), or a callable that makes that text: it gets a `TensorType` for each tensor and the other
    arguments by name. Text takes other arguments than tensors at their defaults only.

    Replaces an earlier registration; graphs that are compiled already stay as they are. Gradients are those
    of `torch.library.register_autograd`. Raises TypeError for what is no operator, ValueError for one that
    cannot be given a lowering: the compiler has one (unless `override`), PyTorch takes the operator apart
    before a backend sees it, or it mutates arguments and `stablehlo` is given."""
    overloads = _overloads(op)
    if fn is None and stablehlo is None:
        return lambda function: register_lowering(op, function, override=override)
    if (fn is None) == (stablehlo is None):
        raise TypeError("register_lowering takes a function or stablehlo=, not both")
    if fn is not None and not callable(fn):
        raise TypeError(f"a lowering is a function, not {fn!r}")
    if stablehlo is not None:
        if not (isinstance(stablehlo, str) or callable(stablehlo)):
            raise TypeError(f"stablehlo= takes text or a callable that makes it, not {stablehlo!r}")
        if len(overloads) > 1:
            names = ", ".join(str(o) for o in overloads)
            raise ValueError(f"{op} has several overloads; name the one that is meant: {names}")
        if isinstance(stablehlo, str):
            stablehlo = generic_form(stablehlo)
    known = set(lowered_targets())
    for each in overloads:
        if str(each) in known and not override:
            raise ValueError(f"{each} has a lowering; pass override=True to replace it")
        if torch._C._dispatch_has_kernel_for_dispatch_key(each.name(), "CompositeImplicitAutograd"):
            raise ValueError(f"{each} is composite: PyTorch takes it apart before a backend sees it")
        if stablehlo is not None and each._schema.is_mutable:
            raise ValueError(f"{each} mutates arguments: give it a Python function")
    for each in overloads:
        registered[each] = Lowering(fn, stablehlo)
    return fn


def _overloads(op: Any) -> list[OpOverload]:
    op = getattr(op, "_opoverload", op)  # what torch.library.custom_op returns
    if isinstance(op, OpOverload):
        return [op]
    if isinstance(op, OpOverloadPacket):
        return [getattr(op, name) for name in op.overloads()]
    raise TypeError(
        f"register_lowering takes an operator (torch.ops.mylib.op, or an overload of it), not {op!r}"
    )


def table() -> decompositions.Table:
    """The decompositions with what was registered."""
    found = dict(decompositions.table())
    for op, lowering in registered.items():
        if lowering.fn is not None:
            found[op] = _decomposition(op, lowering.fn)
        else:
            found.pop(op, None)
    return found


def _decomposition(op: OpOverload, fn: Callable[..., Any]) -> Callable[..., Any]:
    def decomposition(*args: Any, **kwargs: Any) -> Any:
        try:
            made = fn(*args, **kwargs)
        except TorchTPUError:
            raise
        except Exception as e:
            raise TorchTPUError(
                f"the lowering of `{op}`, {_describe(fn)}, raised {type(e).__name__}: {e}"
            ) from e
        _check_results(op, fn, made, args, kwargs)
        return made

    return decomposition


def _check_results(
    op: OpOverload, fn: Callable[..., Any], made: Any, args: Sequence[Any], kwargs: dict[str, Any]
) -> None:
    """What the rest of the graph was traced with is the operator's own shape and dtype."""
    from torch._guards import detect_fake_mode
    from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

    fake_mode = detect_fake_mode((args, kwargs))
    if fake_mode is None:
        return
    shape_env = fake_mode.shape_env
    fresh = getattr(shape_env, "ignore_fresh_unbacked_symbols", None)
    with disable_proxy_modes_tracing(), fake_mode:
        if fresh is None:
            expected = op(*args, **kwargs)
        else:
            with fresh():
                expected = op(*args, **kwargs)
    given, wanted = (torch.utils._pytree.tree_leaves(v) for v in (made, expected))
    same = len(given) == len(wanted) and all(_fits(a, b) for a, b in zip(given, wanted, strict=True))
    if not same:
        raise TorchTPUError(
            f"the lowering of `{op}`, {_describe(fn)}, gives ({_types(given)}) where the operator gives "
            f"({_types(wanted)})"
        )


def _fits(a: Any, b: Any) -> bool:
    if not (isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)):
        return type(a) is type(b)
    known = ((x, y) for x, y in zip(a.shape, b.shape, strict=False) if type(x) is int and type(y) is int)
    return a.dtype == b.dtype and a.dim() == b.dim() and all(x == y for x, y in known)


def _types(values: Iterable[Any]) -> str:
    return ", ".join(
        f"{str(v.dtype).removeprefix('torch.')}{list(v.shape)}"
        if isinstance(v, torch.Tensor)
        else type(v).__name__
        for v in values
    )


def _describe(fn: Any) -> str:
    code = getattr(fn, "__code__", None)
    name = getattr(fn, "__qualname__", repr(fn))
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


# StableHLO


def generic_form(text: str) -> str:
    """The text in MLIR's generic form; StableHLO's own is translated by jax. Raises ValueError without."""
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith(("//", "#"))), "")
    if first.startswith('"'):
        return text
    try:
        from jax.interpreters import mlir  # type: ignore[import-not-found, unused-ignore]
        from jaxlib.mlir import ir  # type: ignore[import-not-found, unused-ignore]
    except ImportError:
        raise ValueError(
            "stablehlo= takes MLIR's generic form ('\"stablehlo.add\"(%0, %1) : ...'), which `stablehlo-opt "
            "--mlir-print-op-generic` and jax's `lowered.compiler_ir().operation.get_asm(print_generic_op_form="
            "True)` print; StableHLO's own syntax is read where jax is installed"
        ) from None
    with mlir.make_ir_context():
        try:
            module = ir.Module.parse(text)
        except ir.MLIRError as e:
            raise ValueError(f"stablehlo= is no MLIR module: {e}") from None
        return str(module.operation.get_asm(print_generic_op_form=True, use_local_scope=True))


StableHloText = str | Callable[[Callable[[Any], Any]], str]
"""A text, or what makes it once numbers are known: the argument gives a size or argument its value."""


def stablehlo_of(node: Node) -> StableHloText | None:
    """The user's StableHLO for a node; None where none is registered."""
    lowering = registered.get(node.target) if isinstance(node.target, OpOverload) else None
    if lowering is None or lowering.stablehlo is None:
        return None
    return _Call(node, lowering.stablehlo).text()


class _Call:
    """The arguments of one node, apart."""

    def __init__(self, node: Node, source: str | Callable[..., str]) -> None:
        self.node, self.source = node, source
        assert isinstance(node.target, OpOverload)
        self.op = node.target
        self.tensors: list[torch.Tensor] = []
        self.others: dict[str, Any] = {}
        self.changed: list[str] = []
        for i, parameter in enumerate(self.op._schema.arguments):
            default = parameter.default_value if parameter.has_default_value() else None
            arg = node.args[i] if i < len(node.args) else node.kwargs.get(parameter.name, default)
            value = torch.fx.node.map_arg(arg, lambda n: n.meta["val"])
            leaves = value if isinstance(value, (list, tuple)) else [value]
            tensors = [v for v in leaves if isinstance(v, torch.Tensor)]
            if tensors:
                self.tensors += tensors
            elif not _holds_tensors(parameter.type):
                self.others[parameter.name] = value
                if not parameter.has_default_value() or value != default:
                    self.changed.append(parameter.name)

    def text(self) -> StableHloText:
        if callable(self.source):
            return self.make
        if self.changed:
            raise TorchTPUError(
                f"the StableHLO text of `{self.op}` cannot know its argument {self.changed[0]!r}\n"
                f"  at:    {_user_line(self.node)}\n"
                "  help:  register a callable: it gets the arguments that are no tensors by name"
            )
        return self.source

    def make(self, number: Callable[[Any], Any]) -> str:
        assert callable(self.source)
        types = [TensorType(t.dtype, tuple(int(number(s)) for s in t.shape)) for t in self.tensors]
        others = {name: _map_numbers(number, value) for name, value in self.others.items()}
        try:
            text = self.source(*types, **others)
            if not isinstance(text, str):
                raise TypeError(f"it returned {type(text).__name__}, not text")
            return generic_form(text)
        except Exception as e:
            raise TorchTPUError(
                f"the StableHLO of `{self.op}`: {_describe(self.source)} raised {type(e).__name__}: {e}\n"
                f"  at:    {_user_line(self.node)}"
            ) from e


def _map_numbers(number: Callable[[Any], Any], value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_map_numbers(number, v) for v in value]
    return number(value)


def _holds_tensors(kind: Any) -> bool:
    return "Tensor" in str(kind)


def _user_line(node: Node) -> str:
    from .export import user_frames

    frames = user_frames(node.meta.get("stack_trace") or "")
    return f"{frames[0][0]}:{frames[0][1]}" if frames else "?"


# What PyTorch wraps around operators that mutate or have effects.


def inner_op(node: Node) -> OpOverload | None:
    """The operator that auto_functionalized (first argument) or with_effects (second) runs."""
    if str(node.target) not in ("auto_functionalized", "auto_functionalized_v2", "with_effects"):
        return None
    position = 1 if str(node.target) == "with_effects" else 0
    op = node.args[position] if len(node.args) > position else None
    return op if isinstance(op, OpOverload) else None


def expand(gm: GraphModule) -> None:
    """Puts the functions of registered operators in the place of the higher-order operators around them, and operators in
    that of `out_dtype`, nested graphs too. Raises TorchTPUError for a function that cannot be traced."""
    for module in gm.modules():
        if isinstance(module, GraphModule):
            found = [n for n in module.graph.nodes if _function(n) is not None or _is_out_dtype(n)]
            for node in found:
                _inline(module, node)
            if found:
                module.recompile()


def _function(node: Node) -> Callable[..., Any] | None:
    op = inner_op(node) if node.op == "call_function" else None
    return registered[op].fn if op in registered else None


def _is_out_dtype(node: Node) -> bool:
    return node.op == "call_function" and str(node.target) == "out_dtype"


def _out_dtype(op: OpOverload, dtype: torch.dtype, *args: Any) -> torch.Tensor:
    """An operator computed in another dtype; products of int8 need no wider operands."""
    from torch._higher_order_ops.out_dtype import out_dtype_fallback

    tensors = [a for a in args if isinstance(a, torch.Tensor)]
    small = all(a.dtype == torch.int8 for a in tensors)
    if op is torch.ops.aten.mm.default and dtype == torch.int32 and small:
        return torch._int_mm(*tensors)
    made: torch.Tensor = out_dtype_fallback(op, dtype, *args)
    return made


def _inline(gm: GraphModule, node: Node) -> None:
    from torch._higher_order_ops import auto_functionalize
    from torch.fx.experimental.proxy_tensor import make_fx

    sources = node.all_input_nodes
    kind = str(node.target)

    def call(*values: Any) -> Any:
        known = dict(zip(sources, values, strict=True))
        args: Any = torch.fx.node.map_arg(node.args, known.__getitem__)
        kwargs = dict(torch.fx.node.map_arg(node.kwargs, known.__getitem__))
        if kind == "out_dtype":
            op, dtype, *operands = args
            return (_out_dtype(op, dtype, *operands),)
        if kind == "with_effects":
            op = args[1]
            made = op(*args[2:], **kwargs)
            return made if isinstance(made, tuple) else (made,)
        # It copies what is written over as a view of memory, through which nothing may be written; the second
        # version makes views of the copy again, which then has to have the strides of the base.
        clone = torch.clone if kind == "auto_functionalized" else _clone
        with unittest.mock.patch.object(auto_functionalize, "clone_preserve_strides", clone):
            return getattr(auto_functionalize, f"{kind}_dense")(args[0], **kwargs)

    def trace(function: Callable[..., Any], values: Sequence[Any]) -> GraphModule:
        tracer = make_fx(
            function, decomposition_table=table(), tracing_mode="real", _allow_non_fake_inputs=True
        )
        return tracer(*values)

    values = [n.meta["val"] for n in sources]
    # First with the mutations of the clones, which the second trace makes functional.
    mutating = trace(call, values)
    made = trace(torch.func.functionalize(mutating, remove="mutations_and_views"), values)
    results = _copy_in(gm, node, made, sources)
    if kind == "out_dtype":
        node.replace_all_uses_with(results[0])
        gm.graph.erase_node(node)
        return
    if kind == "with_effects":
        token = node.args[0]
        if isinstance(token, Node):
            token.meta["torchtpu_token"] = True
        results = [token, *results]
    _hand_out(gm, node, results)


def _hand_out(gm: GraphModule, node: Node, results: Sequence[Any]) -> None:
    """Replaces the items of what a node gave, which may be lists again."""
    for user in list(node.users):
        assert user.target is operator.getitem
        result = results[user.args[1]]  # type: ignore[index]
        if isinstance(result, Node):
            user.replace_all_uses_with(result)
            gm.graph.erase_node(user)
        elif isinstance(result, (list, tuple)):
            _hand_out(gm, user, result)
        else:
            assert not user.users  # None
            gm.graph.erase_node(user)
    gm.graph.erase_node(node)


def _clone(base: torch.Tensor) -> torch.Tensor:
    import torch._prims_common as prims

    # A base that is not dense keeps its strides, and torch's way.
    dense = getattr(prims, "is_non_overlapping_and_dense_or_false", None)
    return base.clone() if dense is not None and dense(base) else prims.clone_preserve_strides(base)


def _copy_in(gm: GraphModule, place: Node, made: GraphModule, sources: Sequence[Node]) -> list[Any]:
    """Copies a traced graph before `place`, at its line; what the graph returns."""
    given = iter(sources)
    copies: dict[Node, Node] = {}
    with gm.graph.inserting_before(place):
        for node in made.graph.nodes:
            if node.op == "placeholder":
                copies[node] = next(given)
            elif node.op == "output":
                return list(torch.fx.node.map_arg(node.args[0], copies.__getitem__))
            else:
                copy = copies[node] = gm.graph.node_copy(node, copies.__getitem__)
                if node.op == "get_attr":
                    copy.target = name = f"_lowering_{copy.name}"
                    setattr(gm, name, getattr(made, str(node.target)))
                if "stack_trace" in place.meta:
                    copy.meta["stack_trace"] = place.meta["stack_trace"]
    return []

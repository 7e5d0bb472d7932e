"""FX graph to payload: the one hand-over from Python to the compiler.

A single pass over the graph writes down what PyTorch says (operators by schema, sizes, dtypes, user stacks).
The schema is `compiler/import`. Nothing here may rewrite the graph or judge whether an operator is supported.
"""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import json
import math
import operator
import os
import re
import sys
import types
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch._subclasses import FakeTensor
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from . import collectives, flex
from .custom_ops import StableHloText, inner_op, stablehlo_of

VERSION = 1
INLINE_BYTES = 4096
"""Constants up to this size travel inside the payload; the others are passed at run time."""

# What a graph returns, by output: ("tensor", k) the k-th tensor of the executable, ("view", (k, size, stride,
# offset)) a view of it, ("input", i) the i-th argument itself, ("input_view", (i, size, stride, offset)) a view of
# it, offset counted from its own, ("const", v), ("sym", expression).
Output = tuple[str, Any]


@dataclasses.dataclass(frozen=True)
class Exported:
    """A payload, and what the caller needs to run it."""

    name: str
    kind: str
    json: str
    nodes: int
    outputs: list[Output]
    constants: list[torch.Tensor]
    """Passed after the inputs."""
    tensor_inputs: list[int]
    """Positions of the arguments that are tensors, and behind all arguments those of `views`."""
    symbols: dict[str, tuple[int, int | None]]
    """Where each symbol is read: argument and dimension; no dimension for an argument that is the number."""
    input_names: list[str]
    returned: list[str]
    """The nodes whose results are the tensors of the executable."""
    texts: list[StableHloText]
    """What the user registered as StableHLO for the nodes of this graph and of those nested in it."""
    lazy: list[tuple[int, bool]] = dataclasses.field(default_factory=list)
    """Of the tensor inputs, those that may come as lazy conjugates or negatives, and whether the graph writes them."""
    views: list[tuple[int, list[int], list[int], int | None]] = dataclasses.field(default_factory=list)
    """Views of arguments that the caller makes: position, and what `as_strided` takes."""
    size_names: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    """By symbol: the sizes of the user's arguments that it stands for."""

    def payload(self, number: Callable[[Any], Any]) -> str:
        """The payload with its StableHLO; `number` gives a size its value. Raises TorchTPUError."""
        if not self.texts:
            return self.json
        texts = [text if isinstance(text, str) else text(number) for text in self.texts]
        return f'{self.json[:-1]},"stablehlo":{json.dumps(texts)}}}'


def export(gm: GraphModule, kind: str, name: str, static: Iterable[int] = (), returned: int = 0) -> Exported:
    """Writes `gm`, as AOTAutograd hands it to a compiler, as a payload.

    `kind` is inference, forward or backward; `static` are the positions of parameters and buffers. The first `returned`
    outputs reach the user, who may write to them: views of inputs are planned as such.
    """
    return _Exporter(gm).run(kind, name, frozenset(static), returned)


_UNKNOWN = object()


class _Exporter:
    def __init__(self, gm: GraphModule) -> None:
        self.gm = gm
        self.placeholders: list[Node] = [n for n in gm.graph.nodes if n.op == "placeholder"]
        self.values: dict[Node, int] = {}
        self.saved: dict[Any, int] = {}  # random operators, by the value that is the state before them
        self.numbers: dict[Node, Any] = {}  # nodes whose value is a number, known or symbolic
        self.targets: list[dict[str, Any]] = []
        self.target_index: dict[Any, int] = {}
        self.tokens: dict[Node, Node] = {}  # checks that are left out, with the token that they pass on
        self.stacks: list[list[tuple[str, int, str]]] = []
        self.stack_index: dict[str, int | None] = {}
        self.stack_ids: dict[tuple[Any, ...], int] = {}
        self.node_stack: dict[Node, int] = {}
        self.caller: Any = _UNKNOWN  # the stack of the call that compiles, made when needed
        self.symbols: dict[str, tuple[int, int | None]] = {}
        self.groups: dict[str, collectives.Groups] = {}
        self.graphs: list[dict[str, Any]] = []
        self.graph_index: dict[str, int] = {}
        self.texts: list[StableHloText] = []
        self.returned: list[str] = []
        self.views: dict[Node, tuple[int, list[int], list[int], int | None]] = {}

    def run(self, kind: str, name: str, static: frozenset[int], returned: int) -> Exported:
        plan: list[Output] = []

        def planned(node: Node) -> list[Any]:
            made, values = self.outputs(node, returned)
            plan.extend(made)
            return values

        if returned:  # else nothing arranges a call
            self.views = self.input_views(kind)
        payload, passed = self.payload(kind, name, static, planned)
        tensor_inputs = [i for i, spec in enumerate(payload["inputs"]) if "val" in spec]
        return Exported(
            name=name,
            kind=kind,
            json=json.dumps(payload, separators=(",", ":"), allow_nan=False),
            nodes=len(payload["nodes"]),
            outputs=plan,
            constants=passed,
            tensor_inputs=tensor_inputs,
            symbols=self.symbols,
            input_names=[n.name for n in self.placeholders],
            returned=self.returned,
            texts=self.texts,
            lazy=self.lazy(kind, [([*self.placeholders, *self.views])[i] for i in tensor_inputs]),
            views=list(self.views.values()),
        )

    def input_views(self, kind: str) -> dict[Node, tuple[int, list[int], list[int], int | None]]:
        """What `as_strided` makes of arguments: it counts in the argument's memory, which may begin before the argument,
        end behind it, and be another one at the next call. Not where the graph writes the argument: its memory is then
        overwritten in place. What a forward saves begins where it begins."""
        if kind == "backward":
            return {}
        written = {n.args[0] for n in self.gm.graph.nodes if n.target is torch.ops.aten.copy_.default}
        found = {}
        for node in self.gm.graph.nodes:
            if node.target is not torch.ops.aten.as_strided.default:
                continue
            source, shape, stride, offset = schema_args(node)
            fixed = all(type(v) is int for v in (*shape, *stride, 0 if offset is None else offset))
            if source.op == "placeholder" and source not in written and fixed and memory_of(source):
                found[node] = (self.placeholders.index(source), list(shape), list(stride), offset)
        return found

    def lazy(self, kind: str, tensors: list[Node]) -> list[tuple[int, bool]]:
        written = {n.args[0] for n in self.gm.graph.nodes if n.target is torch.ops.aten.copy_.default}
        # A derivative comes from the user's program, and nothing compares it with what was traced.
        derivatives = kind == "backward"
        return [
            (k, node in written)
            for k, node in enumerate(tensors)
            if isinstance(value := node.meta["val"], torch.Tensor)
            and (value.is_complex() or value.is_neg() or (derivatives and node.name.startswith("tangents")))
        ]

    def payload(
        self, kind: str, name: str, static: frozenset[int], returned: Callable[[Node], list[Any]]
    ) -> tuple[dict[str, Any], list[torch.Tensor]]:
        """The graph, with the outputs that `returned` makes of its last node; and the tensors that it owns."""
        inputs = [self.input(i, n, i in static) for i, n in enumerate(self.placeholders)]
        self.bind_sizes(self.placeholders)
        inputs += [{"name": n.name, "val": tensor_meta(n.meta["val"])} for n in self.views]
        self.values = {n: i for i, n in enumerate([*self.placeholders, *self.views])}
        constants, passed = self.constants()
        nodes: list[dict[str, Any]] = []
        outputs: list[Any] = []
        first = len(inputs) + len(constants)
        for node in self.gm.graph.nodes:
            if node.op == "call_function":
                if node in self.views:
                    continue
                if is_random(node):
                    nodes.extend(self.random(node, first + len(nodes)))
                    continue
                if node.target is operator.getitem and node.args[0] in self.saved:
                    self.values[node] = self.saved[node.args[0]] + node.args[1]
                    continue
                if self.is_number(node) or is_check(node) or is_option(node) or self.is_token(node):
                    continue
                exported = self.node(node)
                self.values[node] = first + len(nodes)
                nodes.append(exported)
            elif node.op == "output":
                outputs = returned(node)
        payload = {
            "version": VERSION,
            "name": name,
            "kind": kind,
            "torch": torch.__version__,
            "matmul_precision": torch.get_float32_matmul_precision(),
            "inputs": inputs,
            "constants": constants,
            "targets": self.targets,
            "nodes": nodes,
            "outputs": outputs,
            "stacks": self.stacks,
        }
        if float8_overflow_is_nan():
            payload["float8_overflow_is_nan"] = True
        if self.groups:
            payload["groups"] = self.groups
        if self.graphs:
            payload["graphs"] = self.graphs
        return payload, passed

    def nested(self, target: str, gm: GraphModule) -> dict[str, Any]:
        """The graph that a higher-order operator runs, as an argument; each is written once. Its outputs are
        values and None, in order."""
        if target not in self.graph_index:
            self.graph_index[target] = len(self.graphs)
            self.graphs.append({})
            inner = _Exporter(gm)
            # A copy: what only this graph's own arguments would tell is not known to the caller.
            inner.symbols, inner.texts, inner.groups = dict(self.symbols), self.texts, self.groups
            payload, _ = inner.payload(
                "inference", target, frozenset(), lambda node: [inner.arg(r) for r in returns(node)]
            )
            self.graphs[self.graph_index[target]] = payload
        return {"graph": self.graph_index[target]}

    def input(self, index: int, node: Node, static: bool) -> dict[str, Any]:
        value = node.meta.get("val")
        spec: dict[str, Any] = {"name": node.name}
        if is_token_input(node):
            spec["sym"] = "token"  # None at run time
        elif is_state(node):
            spec["val"] = _STATE
        elif isinstance(value, torch.Tensor):
            spec["val"] = tensor_meta(value)
        else:
            self.numbers[node] = value
            spec["sym"] = number_text(value)
            if isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool)) and not is_ragged(value):
                self.symbols.setdefault(spec["sym"], (index, None))
        if static:
            spec["static"] = True
        return spec

    def bind_sizes(self, placeholders: Sequence[Node]) -> None:
        """Symbols that no argument carries are read off the sizes of tensors."""
        for index, node in enumerate(placeholders):
            value = node.meta.get("val")
            if isinstance(value, torch.Tensor) and not is_state(node):
                for dim, extent in enumerate(value.shape):
                    if (
                        isinstance(extent, torch.SymInt)
                        and isinstance(text := size(extent), str)
                        and text.isidentifier()
                    ):
                        self.symbols.setdefault(text, (index, dim))

    def constants(self) -> tuple[list[dict[str, Any]], list[torch.Tensor]]:
        """The tensors that the graph owns: inlined ones first or not, in graph order, each once."""
        specs: list[dict[str, Any]] = []
        passed: list[torch.Tensor] = []
        seen: dict[str, int] = {}
        first = len(self.values)
        for node in self.gm.graph.nodes:
            if node.op != "get_attr":
                continue
            target = str(node.target)
            tensor = functools.reduce(getattr, target.split("."), self.gm)
            if not isinstance(tensor, torch.Tensor):
                continue  # the subgraph of a higher-order operator: exported by name where it is used
            if target not in seen:
                seen[target] = len(specs)
                spec = {"name": target, "val": tensor_meta(tensor)}
                # Compilers are called with tracing modes still on, and this must not be traced.
                with torch.utils._python_dispatch._disable_current_modes(), torch.no_grad():
                    data = constant_hex(tensor)
                    if data is not None:
                        spec["hex"] = data
                    else:
                        passed.append(tensor.detach().resolve_conj().resolve_neg())
                specs.append(spec)
            self.values[node] = first + seen[target]
        return specs, passed

    def is_number(self, node: Node) -> bool:
        """Notes a node that computes a number from known symbols; such nodes exist only in the payload's
        sizes."""
        value = node.meta.get("val")
        if isinstance(value, (int, float, bool)) or (is_symbolic(value) and self.is_bound(value)):
            self.numbers[node] = value
            return True
        # What is left of an item() that nobody reads.
        return is_symbolic(value) and not node.users

    def is_token(self, node: Node) -> bool:
        """Leaves out checks of linalg functions (a singular matrix gives infinities or NaN), and their
        tokens."""
        if is_matrix_check(node):
            self.tokens[node] = node.all_input_nodes[0]
            return True
        if node.target is operator.getitem and node.args[0] in self.tokens:
            source = self.tokens[node.args[0]]  # type: ignore[index]
            self.tokens[node] = self.tokens.get(source, source)
            return True
        return False

    def is_bound(self, value: Any) -> bool:
        known = getattr(value.node, "maybe_as_int", lambda: None)()
        return known is not None or all(str(s) in self.symbols for s in value.node.expr.free_symbols)

    def node(self, node: Node) -> dict[str, Any]:
        if flex.is_flex(node):
            return self.dense(node)
        return self.call(node, node, node.meta.get("val"))

    def call(self, node: Node, called: Node, value: Any) -> dict[str, Any]:
        """An operator, its arguments and results; `node` gives the name and the user's line."""
        # Two calls of one higher-order operator may differ in the number of their arguments.
        target = called.target
        takes = 0 if isinstance(target, torch._ops.OpOverload) else len(called.args) + len(called.kwargs)
        key = (target, takes, inner_op(called))
        index = self.target_index.get(key)
        if index is None:
            index = self.target_index[key] = len(self.targets)
            self.targets.append(target_spec(called))
        out: dict[str, Any] = {
            "name": node.name,
            "target": index,
            "args": [self.arg(a) for a in schema_args(called)],
            "vals": result_metas(value),
        }
        if str(target).startswith("_c10d_functional"):
            collectives.add_groups(self.groups, called)
        text = stablehlo_of(called)
        if text is not None:
            out["stablehlo"] = len(self.texts)
            self.texts.append(text)
            if isinstance(value, (list, tuple)):
                out["tuple"] = True
        stack = self.stack(node)
        if stack is not None:
            out["stack"] = self.node_stack[node] = stack
        return out

    def random(self, node: Node, index: int) -> list[dict[str, Any]]:
        """A random operator that is recomputed in the backward: it, and the state that it draws from, which is ours
        and not the bytes of torch's generator."""
        saves = str(node.target) == _SAVES
        op: Any
        op, *args = node.args if saves else node.args[1:]
        called: Any = types.SimpleNamespace(target=op, args=args, kwargs=node.kwargs)
        given: Any = torch.fx.map_arg((args, node.kwargs), lambda n: n.meta["val"])
        vals = (n.meta.get("val") for n in node.graph.nodes)
        mode = next(f.fake_mode for f in pytree.tree_leaves(list(vals)) if isinstance(f, FakeTensor))
        with mode:
            value = op(*given[0], **given[1])
        call = self.call(node, called, value)

        def step(name: str, params: list[str], args: list[Any], vals: list[Any]) -> dict[str, Any]:
            self.targets.append({"name": name, "params": params})
            made = {"name": node.name, "target": len(self.targets) - 1, "args": args, "vals": vals}
            return {**made, "stack": call["stack"]} if "stack" in call else made

        if saves:
            self.saved[node] = index
            return [step("rng_state", [], [], [_STATE]), call]
        self.values[node] = index + 1
        state = self.arg(node.args[0])
        return [step("set_rng_state", ["state"], [state], []), call, step("restore_rng_state", [], [], [])]

    def dense(self, node: Node) -> dict[str, Any]:
        """An operator that runs graphs of scalars, as the graph of what it computes."""
        owned = lambda name: functools.reduce(getattr, name.split("."), self.gm)
        gm, operands = flex.dense(node, owned)
        args = [self.nested(node.name, gm), node.name, *(self.arg(n) for n in operands)]
        index = len(self.targets)
        self.targets.append({"name": "invoke_subgraph", "params": [f"arg{i}" for i in range(len(args))]})
        out: dict[str, Any] = {
            "name": node.name,
            "target": index,
            "args": args,
            "vals": result_metas(pytree.tree_leaves(node.meta.get("val"), is_leaf=lambda x: x is None)),
        }
        stack = self.stack(node)
        if stack is not None:
            out["stack"] = self.node_stack[node] = stack
        return out

    def arg(self, value: Any) -> Any:
        if isinstance(value, Node):
            if value in self.numbers:
                return self.number(self.numbers[value])
            index = self.values.get(value)
            if index is not None:
                return {"v": index}
            if value.op == "get_attr":
                owned = functools.reduce(getattr, str(value.target).split("."), self.gm)
                if isinstance(owned, GraphModule):
                    return self.nested(str(value.target), owned)
            return str(value.target)
        if value is None or isinstance(value, (str, bool)):
            return value
        if isinstance(value, (list, tuple)):
            return [self.arg(v) for v in value]
        if isinstance(value, torch.dtype):
            return {"dtype": str(value).removeprefix("torch.")}
        return self.number(value)

    def number(self, value: Any) -> Any:
        if isinstance(value, (bool, int)):
            return value
        if isinstance(value, float):
            return (
                value
                if math.isfinite(value)
                else {"float": "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"}
            )
        if isinstance(value, torch.SymInt):
            return value if isinstance(value := size(value), int) else {"sym": value}
        if is_symbolic(value):
            return {"sym": number_text(value)}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        for kind, cls in _OTHERS:
            if isinstance(value, cls):
                return {kind: str(value).removeprefix("torch.")}
        return repr(value)

    def stack(self, node: Node) -> int | None:
        """The user's lines; where PyTorch gives none, those of the first input that has some, else of
        the call."""
        trace = node.meta.get("stack_trace")
        if trace:
            if trace not in self.stack_index:
                self.stack_index[trace] = self.intern(user_frames(trace))
            found = self.stack_index[trace]
            if found is not None:
                return found
        for source in node.all_input_nodes:
            if source in self.node_stack:
                return self.node_stack[source]
        if self.caller is _UNKNOWN:
            self.caller = self.intern(calling_frames())
        return self.caller

    def intern(self, frames: list[tuple[str, int, str]]) -> int | None:
        if not frames:
            return None
        index = self.stack_ids.setdefault(tuple(frames), len(self.stacks))
        if index == len(self.stacks):
            self.stacks.append(frames)
        return index

    def outputs(self, node: Node, own: int) -> tuple[list[Output], list[dict[str, int]]]:
        """How each output is made, the first `own` of which are the user's, and the values that the executable returns,
        each once."""
        position = {n: i for i, n in enumerate(self.placeholders)}
        returned: dict[int, int] = {}
        self.returned = []
        plan: list[Output] = []
        results = returns(node)
        tensors = [v for v in results if isinstance(v, Node) and v in self.values]
        bases = self.shared_bases(tensors)
        users = {v for v in results[:own] if isinstance(v, Node)}
        inputs = self.input_bases(tensors if self.symbols else [v for v in tensors if v in users], users)
        for value in results:
            value = self.tokens.get(value, value)
            if not isinstance(value, Node):
                plan.append(("const", value))
            elif value in position:
                plan.append(("input", position[value]))
            elif value in self.numbers:
                number = self.number(self.numbers[value])
                plan.append(
                    ("sym", number["sym"])
                    if isinstance(number, dict) and "sym" in number
                    else ("const", number)
                )
            elif value.op == "get_attr":
                plan.append(("const", functools.reduce(getattr, str(value.target).split("."), self.gm)))
            elif value.meta.get("val", 0) is None:
                plan.append(("const", None))
            else:
                if value in inputs:
                    base_of, view = inputs[value].meta["val"], value.meta["val"]
                    offset = size(view.storage_offset() - base_of.storage_offset())
                    plan.append(("input_view", (position[inputs[value]], *view_of(view)[:2], offset)))
                    continue
                base = bases.get(value, value)
                k = returned.setdefault(self.values[base], len(returned))
                if k == len(self.returned):
                    self.returned.append(base.name)
                plan.append(("tensor", k) if base is value else ("view", (k, *view_of(value.meta["val"]))))
        return plan, [{"v": index} for index in returned]

    def shared_bases(self, results: list[Node]) -> dict[Node, Node]:
        """For results that share memory with one another, the node that made the memory: writing to one result must
        show in the others. AOTAutograd sees to that itself only where gradients are required."""
        groups: dict[Any, set[Node]] = {}
        memories = self.memories()
        for node in results:
            if node in memories:
                groups.setdefault(memories[node], set()).add(node)
        # Where sizes are symbolic, AOTAutograd reads a view's offset off our result: it must have one.
        inside = {n for n in memories if n in results and self.symbols and view_of(n.meta["val"])[2] != 0}
        shared = {
            memory: nodes
            for memory, nodes in groups.items()
            if len(nodes) > 1 or not inside.isdisjoint(nodes)
        }
        bases: dict[Node, Node] = {}
        for node in self.values if shared else ():
            nodes = shared.pop(memories.get(node), None)
            if nodes is not None and node.op == "call_function":
                same = (n for n in nodes if n.meta["val"].dtype == node.meta["val"].dtype)
                bases.update(dict.fromkeys(same, node))
        return bases

    def input_bases(self, results: list[Node], users: set[Node]) -> dict[Node, Node]:
        """For results that are views of inputs, the input. AOTAutograd makes the user's view anew, and where sizes are
        symbolic, or arguments overlap, reads size, stride and offset off our result; but what makes several views at once
        (`unbind`, `split`) of what requires a gradient it leaves to us. What is saved for a backward stays a copy: a
        program of ours may save what eager does not, and a write to the argument would then be refused.

        A user's view of an input that is written is one of what is written there: the input holds it when results are
        arranged."""
        memories = {memory_of(n): n for n in reversed(self.placeholders) if memory_of(n) is not None}
        written: dict[Any, Node] = {}
        for copy in self.gm.graph.nodes:
            if str(copy.target) != "aten.copy_.default":
                continue
            target, made = copy.args[:2]
            memories.pop(memory_of(target), None)
            if made.op != "placeholder" and view_of(made.meta["val"]) == view_of(target.meta["val"]):
                written[memory_of(made)] = target
        bases: dict[Node, Node] = {}
        for node in results:
            source = memories.get(memory_of(node)) or (
                written.get(memory_of(node)) if node in users else None
            )
            if source is None or node.op == "placeholder":
                continue
            if source.meta["val"].dtype == node.meta["val"].dtype:
                bases[node] = source
        return bases

    def memories(self) -> dict[Node, Any]:
        """Which memory each tensor lies in. Two calls of one nested graph have the same fake results: there the
        call is part of the answer."""
        memories: dict[Node, Any] = {}
        for node in self.values:
            if (memory := memory_of(node)) is None:
                continue
            call = node.args[0] if node.target is operator.getitem else node
            if isinstance(call, Node) and isinstance(call.target, torch._ops.HigherOrderOperator):
                memories[node] = (memory, call)
                continue
            sources = (memories[n] for n in node.all_input_nodes if n in memories)
            memories[node] = next((m for m in sources if m[0] == memory), (memory, None))
        return memories


_OTHERS: tuple[tuple[str, Any], ...] = (
    ("device", torch.device),
    ("layout", torch.layout),
    ("memory_format", torch.memory_format),
)

_CHECKS = (
    "aten._assert_async",
    "aten._assert_scalar",
    "aten._assert_tensor_metadata",
    "aten._functional_assert_async",
    "aten._functional_assert_scalar",
    "aten.sym_constrain_range",
    "aten._functional_sym_constrain_range",
)


@functools.cache
def float8_overflow_is_nan() -> bool:
    """Whether this torch converts what is beyond float8_e4m3fn to NaN, as 2.11 does, or to its greatest value."""
    with torch.utils._python_dispatch._disable_current_modes():
        return bool(torch.tensor([1000.0], device="cpu").to(torch.float8_e4m3fn).float().isnan())


def returns(node: Node) -> Sequence[Any]:
    """What the output node of a graph returns."""
    result = node.args[0]
    return result if isinstance(result, (list, tuple)) else [result]


def is_check(node: Node) -> bool:
    """Assertions on sizes and metadata: dynamo's guards hold them already."""
    return str(node.target).startswith(_CHECKS) and not node.users


def is_option(node: Node) -> bool:
    """An object made for an operator that says how to generate code, and not what to compute."""
    users = {str(user.target) for user in node.users}
    return isinstance(node.target, type) and users <= {"invoke_quant_packed"}


def is_matrix_check(node: Node) -> bool:
    """What a linalg function raises for a singular matrix; takes a token, and passes one on."""
    return str(node.target) == "with_effects" and str(node.args[1]) == "aten._linalg_check_errors.default"


def is_token_input(node: Node) -> bool:
    """A placeholder that orders effects: None at run time."""
    effects = (user for user in node.users if str(user.target) == "with_effects")
    return bool(node.meta.get("torchtpu_token")) or any(user.args[0] is node for user in effects)


_SAVES, _USES = "run_and_save_rng_state", "run_with_rng_state"

_STATE = {"dtype": "int64", "shape": [2], "stride": [1]}
"""A saved state of the generator."""


def is_random(node: Node) -> bool:
    """What torch.utils.checkpoint makes of random operators: the first run saves the state, the second uses it."""
    return str(node.target) in (_SAVES, _USES)


def is_state(node: Node) -> bool:
    """A state that the forward has saved."""
    return bool(node.users) and all(str(u.target) == _USES and u.args[0] is node for u in node.users)


def is_symbolic(value: Any) -> bool:
    return isinstance(value, (torch.SymInt, torch.SymFloat, torch.SymBool))


def is_ragged(value: Any) -> bool:
    """The ragged size of a jagged nested tensor: the name of its offsets, and no number. No tensor of a graph has it."""
    return isinstance(value, torch.SymInt) and isinstance(value.node.hint, torch.SymInt)


def size(value: int | torch.SymInt) -> int | str:
    """An extent or stride: a number, or an expression as sympy prints it."""
    if isinstance(value, int):
        return value
    known = value.node.maybe_as_int()
    return known if known is not None else str(value.node.expr)


def number_text(value: Any) -> str:
    return str(value.node.expr) if is_symbolic(value) else str(value)


def tensor_meta(value: torch.Tensor) -> dict[str, Any]:
    """What the payload says of one tensor."""
    meta: dict[str, Any] = {
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": [size(s) for s in value.shape],
    }
    if value.layout is torch.strided:
        meta["stride"] = [size(s) for s in value.stride()]
        offset = size(value.storage_offset())
        if offset != 0:
            meta["offset"] = offset
    else:
        meta["layout"] = str(value.layout).removeprefix("torch.")
    if value.device.type != "cpu":
        meta["device"] = str(value.device)
    return meta


def memory_of(node: Node) -> tuple[int, bool, bool] | None:
    """Which memory a tensor lies in, as far as tracing knows, and whether its numbers are other than those there: a lazy
    conjugate or negative is no view that size and stride describe."""
    value = node.meta.get("val")
    if isinstance(value, torch.Tensor) and value.layout is torch.strided:
        return value.untyped_storage()._cdata, value.is_conj(), value.is_neg()
    return None


def view_of(value: torch.Tensor) -> tuple[list[int | str], list[int | str], int | str]:
    """Size, stride and offset in the memory."""
    return [size(s) for s in value.shape], [size(s) for s in value.stride()], size(value.storage_offset())


def result_metas(value: Any) -> list[dict[str, Any] | None]:
    """One entry a result; None for what is no tensor."""
    if isinstance(value, torch.Tensor):
        return [tensor_meta(value)]
    if isinstance(value, (list, tuple)):
        return [tensor_meta(v) if isinstance(v, torch.Tensor) else None for v in value]
    return [None]


def constant_hex(tensor: torch.Tensor) -> str | None:
    """The bytes of a small tensor; None for a large one, or one without plain memory to read."""
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return None
    if type(tensor) not in (torch.Tensor, torch.nn.Parameter) or tensor.nbytes > INLINE_BYTES:
        return None
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    return ctypes.string_at(plain.data_ptr(), plain.nbytes).hex() if plain.numel() else ""


@functools.lru_cache(maxsize=4096)
def _parameters(target: torch._ops.OpOverload) -> tuple[tuple[str, Any], ...]:
    """Name and default of each parameter."""
    return tuple(
        (a.name, a.default_value if a.has_default_value() else None) for a in target._schema.arguments
    )


def schema_args(node: Node) -> list[Any]:
    """The arguments in schema order, defaults filled in."""
    if not isinstance(node.target, torch._ops.OpOverload):
        return [*node.args, *node.kwargs.values()]
    given = len(node.args)
    kwargs = node.kwargs
    return [*node.args, *(kwargs.get(name, default) for name, default in _parameters(node.target)[given:])]


def target_spec(node: Node) -> dict[str, Any]:
    """The operator's name and those of its parameters."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return {"name": str(target), "params": [name for name, _ in _parameters(target)]}
    if target is operator.getitem:
        return {"name": "getitem", "params": ["self", "index"]}
    # Not an ATen operator: exported all the same, so that the compiler's error names it and its line.
    params = [f"arg{i}" for i in range(len(node.args))] + list(node.kwargs)
    inner = inner_op(node)
    name = _callable_name(target)
    return {"name": name if inner is None else f"{name}({inner})", "params": params}


def _callable_name(target: Callable[..., Any] | str) -> str:
    if isinstance(target, (str, torch._ops.OperatorBase)):
        return str(target)
    return f"{getattr(target, '__module__', '?')}.{getattr(target, '__qualname__', target)}"


def calling_frames() -> list[tuple[str, int, str]]:
    """The user's frame that called the compiled function: where a module of torch's is compiled by
    itself, PyTorch notes no line."""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith((_TORCH, _HERE, "<")):
            return [(code.co_filename, frame.f_lineno, code.co_name)]
        frame = frame.f_back  # type: ignore[assignment]
    return []


_FRAME = re.compile(r'^\s*File "(?P<file>.*)", line (?P<line>\d+), in (?P<function>.*)$', re.MULTILINE)
_TORCH = os.path.dirname(torch.__file__) + os.sep
_HERE = os.path.dirname(__file__) + os.sep


def user_frames(trace: str) -> list[tuple[str, int, str]]:
    """The frames of a stack trace, innermost first, without torch's own unless there are no others."""
    frames = [(m["file"], int(m["line"]), m["function"]) for m in _FRAME.finditer(trace)]
    frames = [f for f in reversed(frames) if not f[0].startswith((_HERE, "<"))]
    return [f for f in frames if not f[0].startswith(_TORCH)] or frames

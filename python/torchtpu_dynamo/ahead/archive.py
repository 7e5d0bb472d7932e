"""A program of torch.export, or a .pt2 file, as a `Capture`: the same graphs as `torch.compile` would make of it."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from .._torchtpu import TorchTPUError
from ..backend import compile_with, whole_backward
from ..options import Options
from .capture import Capture, Collector, Role, Sizes, Symbol, described
from .containers import constant, name_inputs, split, tree_of
from .trees import Tree


def load(path: str | os.PathLike[str]) -> ExportedProgram:
    """A .pt2 file. Raises TorchTPUError."""
    if not os.path.exists(path):
        raise TorchTPUError(f"{os.fspath(path)}: no such file")
    try:
        return torch.export.load(path)
    except Exception as e:
        why = str(e).strip().splitlines()
        raise TorchTPUError(
            f"{os.fspath(path)}: torch {torch.__version__} cannot load this archive: "
            f"{type(e).__name__}: {why[0] if why else ''}\n"
            "help: export it again with this torch, by torch.export.save(torch.export.export(module, args), path)"
        ) from None


def captured(exported: ExportedProgram, name: str, train: bool, options: Options) -> Capture:
    """The graphs of an exported program. Raises TorchTPUError."""
    module = torch.fx.GraphModule(exported.graph_module, copy.deepcopy(exported.graph_module.graph))
    inputs: list[dict[str, Any]] = []
    weights: dict[str, torch.Tensor] = {}
    places: list[Role] = []
    flat: list[Tree] = []
    for node, spec in zip(module_inputs(module), exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument):
            flat.append({"leaf": len(inputs)})
            places.append({"input": len(inputs)})
            inputs.append({"placeholder": node.name})
            continue
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            target = str(spec.target)
            held = exported.state_dict if target in exported.state_dict else exported.constants
            weights[target] = held[target]
            places.append({"weight": target})
            continue
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument):
            flat.append(constant(spec.arg.value) or {"const": spec.arg.value})
            node.replace_all_uses_with(spec.arg.value)  # type: ignore[arg-type]  # a number does as well
        elif node.users:
            raise TorchTPUError(
                f"input `{node.name}` is a {spec.kind.name.lower()}, which an artifact cannot hold"
            )
        module.graph.erase_node(node)
    _write_mutations(module, exported)
    trees, inputs = _arguments(exported, flat, [spec["placeholder"] for spec in inputs])
    arguments = {
        role["input"]: node
        for role, node in zip(places, module_inputs(module), strict=True)
        if "input" in role
    }
    sizes = _sizes(exported, arguments, inputs)
    if sizes is not None and train:
        raise TorchTPUError(
            "a program with dynamic sizes is compiled for inference alone\nhelp: export it with static sizes to train"
        )
    for i, node in arguments.items():
        inputs[i].update(described(node.meta["val"], sizes))
    collector = Collector(options)
    _trace(module, places, weights, train, collector)
    graphs = collector.captured(places, inputs, weights, train, sizes)
    results = tree_of(exported.call_spec.out_spec, iter(next(iter(graphs.values())).leaves))
    return Capture(name, inputs, trees[0], trees[1], results, weights, graphs, torch.__version__, sizes)


def _arguments(
    exported: ExportedProgram, flat: Sequence[Tree], placeholders: Sequence[str]
) -> tuple[tuple[Tree, Tree], list[dict[str, Any]]]:
    """The trees of positional arguments and of keywords, and the names of the tensors in them."""
    positional, keywords = split(tree_of(exported.call_spec.in_spec, iter(flat)))
    names = [placeholders[t["leaf"]] if "leaf" in t else f"arg{i}" for i, t in enumerate(positional)]
    signature = exported.module_call_graph[0].signature if exported.module_call_graph else None
    known = getattr(signature, "forward_arg_names", None) or []  # older archives have none
    names = [*known[: len(names)], *names[len(known) :]]
    trees: tuple[Tree, Tree] = (
        {"dict": [list(item) for item in zip(names, positional, strict=True)]},
        {"dict": [list(item) for item in keywords]},
    )
    inputs: list[dict[str, Any]] = [{} for _ in placeholders]
    name_inputs(inputs, trees)
    return trees, inputs


def _sizes(
    exported: ExportedProgram, placeholders: Mapping[int, torch.fx.Node], inputs: Sequence[Mapping[str, Any]]
) -> Sizes | None:
    """What the program says of its dynamic sizes; None where it has none. Raises TorchTPUError where one has no bound."""
    shapes = {i: node.meta["val"].shape for i, node in placeholders.items()}
    ranges = {str(symbol): span for symbol, span in exported.range_constraints.items()}
    symbols: dict[str, Symbol] = {}
    for i, shape in shapes.items():
        for dim, extent in enumerate(shape):
            text, name = str(extent), inputs[i]["name"]
            if isinstance(extent, int) or text in symbols or text not in ranges:
                continue
            if not extent.node.expr.is_Symbol:  # computed of another's
                continue
            low, high = ranges[text].lower, ranges[text].upper
            if not high.is_Integer:
                raise TorchTPUError(
                    f"dimension {dim} of argument `{name}` is dynamic and has no upper bound\n"
                    f"help: export it with one, as dynamic_shapes={{{name!r}: {{{dim}: "
                    f"torch.export.Dim('size', max=2048)}}}}: memory and time are those of the bound"
                )
            symbols[text] = Symbol(i, dim, int(low), int(high))
    _check_known(shapes, symbols, inputs)
    if not symbols:
        return None
    return Sizes(symbols, [[e if isinstance(e, int) else str(e) for e in shapes[i]] for i in sorted(shapes)])


def _check_known(
    shapes: Mapping[int, torch.Size], symbols: Mapping[str, Symbol], inputs: Sequence[Mapping[str, Any]]
) -> None:
    """Raises TorchTPUError for a size that is computed of one that no argument has, as that of `2 * Dim("d")`."""
    for i, shape in shapes.items():
        for dim, extent in enumerate(shape):
            if isinstance(extent, int) or extent.node.expr.is_Symbol:
                continue
            for symbol in sorted(set(map(str, extent.node.expr.free_symbols)) - set(symbols)):
                name = inputs[i]["name"]
                raise TorchTPUError(
                    f"dimension {dim} of argument `{name}` is {extent}, and no argument has the size {symbol}, which would "
                    f"have to be told from it\nhelp: export it with a Dim of its own, as dynamic_shapes="
                    f"{{{name!r}: {{{dim}: torch.export.Dim('size', max=2048)}}}}, or with static sizes"
                )


def module_inputs(module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _write_mutations(module: torch.fx.GraphModule, exported: ExportedProgram) -> None:
    """A functional program returns what its buffers become: here they are written, as in the user's module."""
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    placeholders = {n.name: n for n in module.graph.nodes if n.op == "placeholder"}
    targets = {spec.target: spec.arg.name for spec in exported.graph_signature.input_specs if spec.target}
    kept = []
    for value, spec in zip(output.args[0], exported.graph_signature.output_specs, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT:
            kept.append(value)
        elif spec.kind.name in ("BUFFER_MUTATION", "USER_INPUT_MUTATION", "PARAMETER_MUTATION"):
            into = placeholders[targets.get(spec.target, spec.target)]
            with module.graph.inserting_before(output):
                module.graph.call_function(torch.ops.aten.copy_.default, (into, value))
    output.args = (tuple(kept),)
    module.recompile()


def _trace(
    module: torch.fx.GraphModule,
    places: list[Role],
    weights: dict[str, torch.Tensor],
    train: bool,
    collector: Collector,
) -> None:
    """Runs AOTAutograd."""
    values = [n.meta["val"] for n in module_inputs(module)]
    mode = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)
    if mode is None:
        raise TorchTPUError("nothing to compile: the program takes no tensor and has no weights")
    examples = []
    for value, place in zip(values, places, strict=True):
        weight = weights.get(place.get("weight", ""))
        wanted = train and (value if weight is None else weight).requires_grad
        with mode:
            examples.append(value.detach().requires_grad_(wanted))
    static = [i for i, place in enumerate(places) if "weight" in place]
    with contextlib.ExitStack() as stack:
        stack.enter_context(tracing(TracingContext(mode)))
        stack.enter_context(torch.set_grad_enabled(train))
        stack.enter_context(whole_backward())
        compile_with(module, examples, collector.compile, collector.options, static=static)

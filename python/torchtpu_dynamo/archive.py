"""A program of torch.export, or a .pt2 file, as a `Capture`: the same graphs as `torch.compile` would make of it."""

from __future__ import annotations

import contextlib
import copy
import os
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensor
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind, OutputKind, TensorArgument

from ._torchtpu import TorchTPUError
from .backend import compile_with, whole_backward
from .capture import Capture, Collector, Role, described, name_inputs, split, tree_of
from .options import Options
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
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(placeholders, exported.graph_signature.input_specs, strict=True):
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, TensorArgument):
            flat.append({"leaf": len(inputs)})
            places.append({"input": len(inputs)})
            _check_static(node)
            inputs.append({**described(node.meta["val"]), "placeholder": node.name})
            continue
        if spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            target = str(spec.target)
            held = exported.state_dict if target in exported.state_dict else exported.constants
            weights[target] = held[target]
            places.append({"weight": target})
            continue
        if spec.kind is InputKind.USER_INPUT and isinstance(spec.arg, ConstantArgument):
            flat.append({"const": spec.arg.value})
            node.replace_all_uses_with(spec.arg.value)
        elif node.users:
            raise TorchTPUError(
                f"input `{node.name}` is a {spec.kind.name.lower()}, which an artifact cannot hold"
            )
        module.graph.erase_node(node)
    _write_mutations(module, exported)
    positional, keywords = split(tree_of(exported.call_spec.in_spec, iter(flat)))
    # The archive has no names of positional arguments but those of their tensors.
    names = [inputs[t["leaf"]]["placeholder"] if "leaf" in t else f"arg{i}" for i, t in enumerate(positional)]
    trees: tuple[Tree, Tree] = (
        {"dict": [list(item) for item in zip(names, positional, strict=True)]},
        {"dict": [list(item) for item in keywords]},
    )
    for spec in inputs:
        del spec["placeholder"]
    name_inputs(inputs, trees)
    collector = Collector(options)
    _trace(module, places, weights, train, collector)
    graphs = collector.captured(places, inputs, weights, train)
    results = tree_of(exported.call_spec.out_spec, iter(next(iter(graphs.values())).leaves))
    return Capture(name, inputs, trees[0], trees[1], results, weights, graphs, torch.__version__)


def _check_static(node: torch.fx.Node) -> None:
    value = node.meta["val"]
    dynamic = [i for i, extent in enumerate(value.shape) if not isinstance(extent, int)]
    if dynamic:
        raise TorchTPUError(
            f"argument `{node.name}` has dynamic sizes: dimension {', '.join(map(str, dynamic))} of "
            f"{tuple(map(str, value.shape))}\nhelp: export it with static sizes, once for each that is needed"
        )


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
    values = [n.meta["val"] for n in module.graph.nodes if n.op == "placeholder"]
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
        compile_with(module, examples, collector.compile, static=static)

"""What torch.export captured, as the graphs that the compiler takes and the words of an artifact's label.

`captured` exports; `Capture.graphs` runs AOTAutograd, as `torch.compile` does, and knows afterwards which input of a graph
is which weight or argument, and which output which result, saved tensor or gradient. Nothing here compiles."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ConstantArgument,
    InputKind,
    OutputKind,
    SymIntArgument,
    TensorArgument,
)
from torch.utils import _pytree as pytree

from ._torchtpu import TorchTPUError
from .backend import compile_with
from .export import Exported, returns
from .graph import Boxed, Graph, boxed, resolve_outputs
from .options import Options
from .trees import Tree


@dataclasses.dataclass(frozen=True)
class Captured:
    """An AOT graph of a capture: what its tensor inputs are and what becomes of its results, as the label has it."""

    graph: Graph
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    leaves: list[dict[str, Any]]
    """For each result of the module, its position in `outputs`, or its value."""
    notes: dict[str, Any]
    """Of a forward: `saves`; of a backward: `saved`, `cotangents` (dtypes) and `gradients` (outputs by name)."""
    saved: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    """By the name of a node that the forward keeps for the backward: where that finds it."""


@dataclasses.dataclass(frozen=True)
class Capture:
    """A module as torch.export sees it."""

    name: str
    module: torch.fx.GraphModule
    inputs: list[dict[str, Any]]
    """Tensor arguments: name, dtype, shape."""
    arguments: Tree
    """Positional arguments by name, then `keywords`; leaves are positions in `inputs`."""
    keywords: Tree
    results: pytree.TreeSpec
    weights: dict[str, torch.Tensor]
    """Parameters, buffers and constants by name, in the order of their inputs; fake where the module is abstract."""
    places: list[dict[str, Any]]
    """What each placeholder is: {"weight": name} or {"input": i}."""
    torch_version: str


def captured(
    fn: Callable[..., Any] | ExportedProgram | str | os.PathLike[str],
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    dynamic_shapes: Any = None,
) -> Capture:
    """Exports a module or function, or takes what was exported. Raises TorchTPUError for a file that this torch does not
    load, and torch's own errors for what torch.export cannot capture."""
    if isinstance(fn, (str, os.PathLike)):
        return read(load(fn), os.path.splitext(os.path.basename(fn))[0])
    if isinstance(fn, ExportedProgram):
        return read(fn, type(fn.graph_module).__name__)
    module = fn if isinstance(fn, torch.nn.Module) else _Function(fn)
    name = getattr(fn, "__name__", type(fn).__name__)
    module, args, kwargs = _placed(module, tuple(args), dict(kwargs or {}))
    exported = torch.export.export(module, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    return read(exported, name, inspect.signature(module.forward))


def _placed(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[torch.nn.Module, tuple[Any, ...], dict[str, Any]]:
    """What is on the meta device, as fake tensors of the CPU: tensors that the module makes are theirs, then."""
    held = [*module.parameters(), *module.buffers(), *pytree.tree_leaves((args, kwargs))]
    if not any(isinstance(t, torch.Tensor) and t.device.type == "meta" for t in held):
        return module, args, kwargs
    mode = next((t.fake_mode for t in held if isinstance(t, FakeTensor)), None) or FakeTensorMode()
    moved: dict[int, torch.Tensor] = {}

    def move(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in moved:
            with mode:
                strided = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                strided = torch.nn.Parameter(strided, tensor.requires_grad)
            moved[id(tensor)] = strided if tensor.device.type == "meta" else mode.from_tensor(tensor)
        return moved[id(tensor)]

    module = copy.deepcopy(module)
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                tensors[name] = move(tensor)
    args, kwargs = pytree.tree_map(move, (args, kwargs))
    return module, args, kwargs


class _Function(torch.nn.Module):
    """A function, as torch.export wants it."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        super().__init__()
        self.forward = fn


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


def read(exported: ExportedProgram, name: str, signature: inspect.Signature | None = None) -> Capture:
    """What an exported program says of itself."""
    module = torch.fx.GraphModule(exported.graph_module, copy.deepcopy(exported.graph_module.graph))
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    inputs: list[dict[str, Any]] = []
    weights: dict[str, torch.Tensor] = {}
    places: list[dict[str, Any]] = []
    flat: list[Tree] = []
    specs = exported.graph_signature.input_specs
    for node, spec in zip(placeholders, specs, strict=True):
        value = node.meta.get("val")
        if spec.kind is InputKind.USER_INPUT:
            if isinstance(spec.arg, TensorArgument):
                flat.append({"leaf": len(inputs)})
                places.append({"input": len(inputs)})
                inputs.append({"name": node.name, **described(value)})
                continue
            if not isinstance(spec.arg, ConstantArgument) or isinstance(spec.arg, SymIntArgument):
                raise TorchTPUError(f"argument `{node.name}` is a number that changes; pass it as a tensor")
            flat.append({"const": spec.arg.value})
            node.replace_all_uses_with(spec.arg.value)
        elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR):
            target = str(spec.target)
            held = exported.state_dict if target in exported.state_dict else exported.constants
            weights[target] = held[target]
            places.append({"weight": target})
            continue
        elif node.users:
            raise TorchTPUError(
                f"input `{node.name}` is {spec.kind.name.lower()}, which an artifact cannot hold"
            )
        module.graph.erase_node(node)
    _write_mutations(module, exported)
    in_tree, out_spec = exported.call_spec.in_spec, exported.call_spec.out_spec
    arguments, keywords = _children(_tree(in_tree, iter(flat)))
    positional = [child for _, child in arguments]
    return Capture(
        name,
        module,
        inputs,
        {"dict": list(zip(_names(signature, positional, inputs), positional, strict=True))},
        {"dict": list(keywords)},
        out_spec,
        weights,
        places,
        torch.__version__,
    )


def described(value: torch.Tensor) -> dict[str, Any]:
    shape = [int(s) if isinstance(s, int) else str(s) for s in value.shape]
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def _write_mutations(module: torch.fx.GraphModule, exported: ExportedProgram) -> None:
    """A functional program returns what its buffers become: here they are written, as in the user's module."""
    (output,) = (n for n in module.graph.nodes if n.op == "output")
    placeholders = {n.name: n for n in module.graph.nodes if n.op == "placeholder"}
    targets = {spec.target: spec.arg.name for spec in exported.graph_signature.input_specs if spec.target}
    kept = []
    for value, spec in zip(output.args[0], exported.graph_signature.output_specs, strict=True):
        if spec.kind is OutputKind.USER_OUTPUT:
            kept.append(value)
        elif spec.kind is OutputKind.BUFFER_MUTATION or spec.kind.name in (
            "USER_INPUT_MUTATION",
            "PARAMETER_MUTATION",
        ):
            into = placeholders[targets.get(spec.target, spec.target)]
            with module.graph.inserting_before(output):
                module.graph.call_function(torch.ops.aten.copy_.default, (into, value))
    output.args = (tuple(kept),)
    module.recompile()


def _names(
    signature: inspect.Signature | None, positional: Sequence[Tree], inputs: Sequence[Mapping[str, Any]]
) -> list[str]:
    """The names of positional arguments: the function's own, or else those of the tensors."""
    if signature is not None:
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        found = [p.name for p in signature.parameters.values() if p.kind in kinds][: len(positional)]
        if len(found) == len(positional):
            return found
    names = []
    for i, tree in enumerate(positional):
        names.append(inputs[tree["leaf"]]["name"] if "leaf" in tree else f"arg{i}")
    return names if len(set(names)) == len(names) else [f"arg{i}" for i in range(len(names))]


def _children(tree: Tree) -> tuple[list[tuple[Any, Tree]], list[tuple[Any, Tree]]]:
    args, kwargs = tree["tuple"]
    return list(enumerate(args["tuple"])), list(kwargs["dict"])


def _tree(spec: pytree.TreeSpec, leaves: Iterator[Tree]) -> Tree:
    """A TreeSpec as a tree, whose leaves are taken from an iterator."""
    if spec.is_leaf():
        return dict(next(leaves))
    parts = [_tree(child, leaves) for child in spec.children()]
    if spec.type in (list, tuple):
        return {spec.type.__name__: parts}
    if spec.type is pytree.namedtuple or (
        isinstance(spec.context, type) and hasattr(spec.context, "_fields")
    ):
        kind: Any = spec.context
        return {"named": [kind.__name__, list(kind._fields), parts]}
    keys = spec.context[0] if _is_keys_in_pair(spec.context, len(parts)) else spec.context
    if isinstance(keys, (list, tuple)) and len(keys) == len(parts):
        return {"dict": [[key, part] for key, part in zip(keys, parts, strict=True)]}
    return {"tuple": parts}


def _is_keys_in_pair(context: Any, count: int) -> bool:
    """Dataclasses have (names of what is flattened, names of what is None)."""
    return (
        isinstance(context, (list, tuple))
        and len(context) == 2
        and all(isinstance(part, (list, tuple)) for part in context)
        and len(context[0]) == count
    )


def results(capture: Capture, leaves: Sequence[Tree]) -> Tree:
    """What the module returns, of the leaves of its forward or inference."""
    return _tree(capture.results, iter(leaves))


class _Stop(Exception):
    """Leaves AOTAutograd when the graphs are known."""


def graphs(capture: Capture, train: bool, options: Options) -> dict[str, Captured]:
    """The AOT graphs of a capture, by kind. Raises TorchTPUError."""
    placeholders = [n for n in capture.module.graph.nodes if n.op == "placeholder"]
    values = [n.meta["val"] for n in placeholders]
    mode = next((v.fake_mode for v in values if isinstance(v, FakeTensor)), None)
    if mode is None:
        raise TorchTPUError("nothing to compile: the module takes no tensor and has no weights")
    examples = []
    for value, place in zip(values, capture.places, strict=True):
        weight = capture.weights.get(place.get("weight", ""))
        with mode:
            example = value.detach()
            wanted = weight.requires_grad if weight is not None else value.requires_grad
            examples.append(example.requires_grad_(wanted) if train and wanted else example)
    if train and not any(e.requires_grad for e in examples):
        raise TorchTPUError("nothing to differentiate: no parameter or argument requires a gradient")
    context = TracingContext(mode)
    found: dict[str, Captured] = {}
    errors: list[TorchTPUError] = []

    def keep(aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int]) -> Boxed:
        try:
            graph = _named(Graph.of(aot_gm, kind, static, options), capture)
            found[kind] = _roles(capture, found, graph, aot_gm, context.fw_metadata)
        except TorchTPUError as e:
            errors.append(e)
        return boxed(_stop)

    static = [i for i, place in enumerate(capture.places) if "weight" in place]
    force = torch._functorch.config.patch(force_non_lazy_backward_lowering=True)
    with tracing(context), torch.set_grad_enabled(train), force:
        failed = compile_with(capture.module, examples, keep, static=static)
    if errors:
        raise errors[0].with_traceback(None)
    if not found:
        failed(*examples)  # raises what there is to say
    if train and "backward" not in found:
        raise TorchTPUError("nothing to differentiate: no result depends on what requires a gradient")
    order = [kind for kind in ("inference", "forward", "backward") if kind in found]
    return {kind: found[kind] for kind in order}


def _stop(*_: Any) -> list[Any]:
    raise _Stop


def _named(graph: Graph, capture: Capture) -> Graph:
    """The graph with the user's names of weights and arguments, where AOTAutograd has numbers."""
    exported = graph.exported
    if exported.kind == "backward":
        return graph
    payload = json.loads(exported.json)
    for spec, place in zip(payload["inputs"], capture.places, strict=True):
        spec["name"] = place.get("weight") or capture.inputs[place["input"]]["name"]
    payload["name"] = exported.kind
    graph.exported = dataclasses.replace(exported, json=json.dumps(payload, separators=(",", ":")))
    return graph


def _roles(
    capture: Capture, found: Mapping[str, Captured], graph: Graph, aot_gm: torch.fx.GraphModule, metadata: Any
) -> Captured:
    """What the inputs and outputs of a graph are."""
    exported = graph.exported
    constants = [f"constant.{exported.kind}.{i}" for i in range(len(exported.constants))]
    capture.weights.update(zip(constants, exported.constants, strict=True))
    held = [{"weight": name} for name in constants]
    outputs, leaves = _outputs(exported)
    if exported.kind == "backward":
        roles, notes = _backward_inputs(found["forward"], aot_gm, exported)
        names = [p.get("weight") or capture.inputs[p["input"]]["name"] for p in capture.places]
        gradients = {n: leaf["leaf"] for n, leaf in zip(names, leaves, strict=False) if "leaf" in leaf}
        return Captured(graph, roles + held, outputs, [], {**notes, "gradients": gradients})
    if metadata.num_mutated_inp_runtime_indices:
        raise TorchTPUError(
            "an argument that requires a gradient is changed in place, which an artifact cannot hold\n"
            "help: change a copy of it"
        )
    roles = [capture.places[i] for i in exported.tensor_inputs]
    (output,) = (n for n in aot_gm.graph.nodes if n.op == "output")
    saved: dict[str, dict[str, Any]] = {}
    saves: list[int] = []
    for value, plan, leaf in list(zip(returns(output), exported.outputs, leaves, strict=True))[
        metadata.num_outputs :
    ]:
        role = capture.places[plan[1]] if plan[0] == "input" else {}
        if "weight" in role:
            saved[value.name] = role  # no need to hand it out and in again
        elif "leaf" in leaf:
            saved[value.name] = {"saved": len(saves)}
            saves.append(leaf["leaf"])
    notes = {"saves": saves} if exported.kind == "forward" else {}
    return Captured(graph, roles + held, outputs, leaves[: metadata.num_outputs], notes, saved)


def _outputs(exported: Exported) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The tensors of a graph's output plan, and for each of its outputs the position among them, or its value."""
    outputs: list[dict[str, Any]] = []
    leaves: list[dict[str, Any]] = []
    for kind, value in resolve_outputs(exported, {}):
        if kind == "const":
            leaves.append({"const": value})
            continue
        leaves.append({"leaf": len(outputs)})
        if kind in ("input", "input_view"):
            at = value if kind == "input" else value[0]
            value = (exported.tensor_inputs.index(at), *(() if kind == "input" else value[1:]))
            value = value[0] if kind == "input" else value
        outputs.append({kind: value})
    return outputs, leaves


def _backward_inputs(
    forward: Captured, aot_gm: torch.fx.GraphModule, exported: Exported
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Saved tensors go by the names that they have in the forward; what remains are derivatives of the results."""
    placeholders = [n for n in aot_gm.graph.nodes if n.op == "placeholder"]
    roles: list[dict[str, Any]] = []
    dtypes: dict[str, dict[int, str]] = {"saved": {}, "cotangent": {}}
    for i in exported.tensor_inputs:
        node = placeholders[i]
        role = forward.saved.get(node.name) or {"cotangent": len(dtypes["cotangent"])}
        ((kind, at),) = role.items()
        if kind in dtypes:
            dtypes[kind][at] = str(node.meta["val"].dtype).removeprefix("torch.")
        roles.append(role)
    saved = [dtypes["saved"].get(i, "") for i in range(len(forward.notes["saves"]))]
    return roles, {"saved": saved, "cotangents": list(dtypes["cotangent"].values())}

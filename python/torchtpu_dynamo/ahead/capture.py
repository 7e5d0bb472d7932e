"""A module or function as the graphs that `torch.compile` would make of it, and the words of an artifact's label.

Afterwards it is known which input of a graph is which weight or argument, and which output which result, saved tensor or
gradient. Nothing is executed and nothing compiled here. A .pt2 file becomes the same in `archive`."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch._guards import TracingContext
from torch._subclasses import FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from .._torchtpu import TorchTPUError
from ..backend import compile_with, whole_backward
from ..buckets import Uppers, bounds_of, chosen, samples
from ..export import Exported, returns
from ..fallback import refuse_data
from ..graph import Boxed, Graph, boxed, resolve, resolve_outputs
from ..options import Options
from ..state import entry, original, reached
from . import arrays, containers, effects
from .containers import closed, opened, split, tree_of
from .trees import Tree

MESH: Tree = {"mesh": None}
"""What stands for the mesh of a DTensor, which is a result beside this rank's part."""

Role = dict[str, Any]
"""What an input of a program is: {"weight": name}, {"input": i}, {"saved": i} or {"cotangent": i}; {} is no tensor."""


@dataclasses.dataclass(frozen=True)
class Symbol:
    """A size that the caller decides: where it is read, and its bounds, both inclusive."""

    input: int
    dim: int
    min: int
    max: int


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The dynamic sizes of a program."""

    symbols: dict[str, Symbol]
    inputs: list[list[int | str]]
    """The shapes of the tensor arguments, as numbers or expressions of symbols."""

    @property
    def upper(self) -> dict[str, int]:
        return {name: symbol.max for name, symbol in self.symbols.items()}

    @property
    def samples(self) -> list[dict[str, int]]:
        """Sizes that tell the compiler what depends on which of them."""
        spans = [(s.min - 1, s.max) for s in self.symbols.values()]
        below = [max(s.min, s.max - 1 - i) for i, s in enumerate(self.symbols.values())]
        return [dict(zip(self.symbols, sizes, strict=True)) for sizes in samples(below, spans)]

    def sources(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
        """By symbol: the dimensions that it stands for, as `NAME:DIM`."""
        return {
            symbol: [
                f"{spec['name']}:{dim}"
                for spec, shape in zip(inputs, self.inputs, strict=True)
                for dim, extent in enumerate(shape)
                if extent == symbol
            ]
            for symbol in self.symbols
        }

    def buckets(self, wanted: Mapping[str, Uppers], sources: Mapping[str, Sequence[str]]) -> list[Sizes]:
        """A program's sizes for each bucket of the option of this name, ascending; the last is for all sizes."""
        steps = []
        for name, symbol in self.symbols.items():
            found, uppers = chosen(wanted, sources[name])
            step = {symbol.max}
            if found and uppers is None:
                size = symbol.min
                while size < symbol.max:
                    _, upper = bounds_of(size, None) or (0, symbol.max)
                    step.add(min(upper, symbol.max))
                    size = upper + 1
            elif found and uppers is not None:
                step.update(upper for upper in uppers if symbol.min <= upper < symbol.max)
            steps.append(sorted(step))
        return [
            Sizes(
                {
                    name: dataclasses.replace(symbol, max=upper)
                    for (name, symbol), upper in zip(self.symbols.items(), uppers, strict=True)
                },
                self.inputs,
            )
            for uppers in itertools.product(*steps)
        ]


@dataclasses.dataclass(frozen=True)
class Captured:
    """An AOT graph: what its tensor inputs are and what becomes of its results."""

    graph: Graph
    inputs: list[Role]
    outputs: list[dict[str, Any]]
    leaves: list[Tree]
    """For each result of the module's graph, its position in `outputs`, or its value."""
    notes: dict[str, Any]
    """Of a forward: `saves`; of a backward: `saved`, `cotangents` (their types) and `gradients` (outputs by name)."""
    saved: dict[str, Role] = dataclasses.field(default_factory=dict)
    """By the name of a node that the forward keeps for the backward: where that finds it."""
    written: list[Role] = dataclasses.field(default_factory=list)
    """What it changes in place."""

    def output_of(self, role: Role) -> int:
        """The output that is an input as the call leaves it."""
        output = {"input": self.inputs.index(role)}
        if output not in self.outputs:
            self.outputs.append(output)
        return self.outputs.index(output)


@dataclasses.dataclass(frozen=True)
class Capture:
    """A module's graphs by kind, and what its caller has to know."""

    name: str
    inputs: list[dict[str, Any]]
    """Tensor arguments: name, dtype, shape."""
    arguments: Tree
    """Positional arguments by name, then `keywords`; leaves are positions in `inputs`."""
    keywords: Tree
    results: Tree
    weights: dict[str, torch.Tensor]
    """Parameters, buffers and constants by name; fake where the module is abstract."""
    graphs: dict[str, Captured]
    torch_version: str
    sizes: Sizes | None = None
    """Of a program that is for a range of sizes."""
    defaults: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Of parameters that were left out: `order`, the names of all that may be passed by position, and `values`."""


@dataclasses.dataclass
class Collector:
    """Takes AOTAutograd's graphs and says what their inputs and outputs are, once `places` is known."""

    options: Options
    graphs: dict[str, tuple[torch.fx.GraphModule, Graph]] = dataclasses.field(default_factory=dict)
    errors: list[TorchTPUError] = dataclasses.field(default_factory=list)
    metadata: Any = None

    def compile(self, aot_gm: torch.fx.GraphModule, kind: str, static: Sequence[int]) -> Boxed:
        """AOTAutograd's compiler."""
        context = TracingContext.try_get()
        if context is not None and context.fw_metadata is not None:
            self.metadata = context.fw_metadata
        try:
            refuse_data(aot_gm)
            self.graphs[kind] = aot_gm, Graph.of(aot_gm, kind, static, self.options)
        except TorchTPUError as e:
            self.errors.append(e)
        return boxed(_leave)

    def captured(
        self,
        places: Sequence[Role],
        inputs: Sequence[Mapping[str, Any]],
        weights: dict[str, torch.Tensor],
        train: bool,
        sizes: Sizes | None = None,
    ) -> dict[str, Captured]:
        """The graphs by kind. Constants of theirs are added to `weights`. Raises TorchTPUError."""
        if self.errors:
            raise self.errors[0].with_traceback(None)
        if train and "backward" not in self.graphs:
            raise TorchTPUError(
                "nothing to differentiate: no result depends on a parameter or argument that requires a gradient\n"
                "help: leave `train` out"
            )
        if self.metadata.num_mutated_inp_runtime_indices:
            raise TorchTPUError(
                "an argument or parameter that requires a gradient is changed in place, which an artifact cannot hold\n"
                "help: change a copy of it"
            )
        found: dict[str, Captured] = {}
        for kind in ("inference", "forward", "backward"):
            if kind in self.graphs:
                aot_gm, graph = self.graphs[kind]
                _check_sizes(graph, sizes)
                slots = _flattened(places, aot_gm) if kind != "backward" else []
                rename(graph, [_name(slot, inputs) for slot in slots])
                names = [_name(place, inputs) for place in places]
                found[kind] = _roles(graph, aot_gm, slots, names, found, weights, self.metadata.num_outputs)
        return found


@dataclasses.dataclass
class Traced:
    """What came of tracing a function."""

    collector: Collector
    flat: list[tuple[Any, ...]] = dataclasses.field(default_factory=list)
    """The inputs of its graph, once."""
    results: list[Any] = dataclasses.field(default_factory=list)
    """Those of its graph, as nodes."""
    held: list[torch.Tensor] = dataclasses.field(default_factory=list)
    """Stand-ins for them, by which they are found again in what the function returns."""
    result: Any = None

    @property
    def stands(self) -> dict[int, int]:
        return {id(t): i for i, t in enumerate(self.held)}

    def value(self, stand: Any) -> Any:
        """What a stand-in stands for, as dynamo saw it."""
        at = self.stands.get(id(stand))
        return stand if at is None else getattr(self.results[at], "meta", {}).get("example_value")


def captured(
    fn: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    train: bool,
    options: Options,
    regions: bool = False,
) -> Capture:
    """Traces `fn(*args, **kwargs)` as one graph, as `torch.compile(fullgraph=True)` does. Parameters and arguments may be
    fake, or on the meta device. With `regions`, modules of one class in a list are regions. Raises TorchTPUError, and
    torch's own errors for what dynamo cannot trace."""
    fn = original(fn)
    if isinstance(fn, (torch.jit.ScriptModule, torch.jit.ScriptFunction)):
        raise TorchTPUError(
            f"{type(fn).__name__} is of torch.jit, which dynamo does not trace\nhelp: pass what it was made of"
        )
    taken = opened((tuple(args), dict(kwargs)))
    shared = _shared(fn, _tensors(pytree.tree_leaves(taken)))
    fn, *taken = placed(fn, *taken)
    leaves, spec = pytree.tree_flatten(tuple(taken))
    if shared:
        leaves = _apart(leaves, {one.later for one in shared})
        taken = pytree.tree_unflatten(leaves, spec)
    given_args, given_kwargs = closed(tuple(taken))
    changes: list[effects.Change] = []
    with effects.undone(fn, given_args, given_kwargs, changes):
        traced = _traced(fn, fn, given_args, given_kwargs, train, options, regions)
    if cells := effects.carried(changes, traced.value):
        with effects.undone(fn, given_args, given_kwargs, []):
            traced = _traced(
                fn, effects.carrying(fn, cells), given_args, given_kwargs, train, options, regions
            )
    inputs, tree, defaults = _arguments(fn, leaves, spec)
    weights: dict[str, torch.Tensor] = {}
    given = {id(leaf): i for i, leaf in enumerate(_tensors(leaves))}
    places = _places(fn, traced.flat[0], given, weights)
    graphs = traced.collector.captured(places, inputs, weights, train)
    _check_shared(shared, inputs, graphs)
    first = next(iter(graphs.values()))
    return Capture(
        getattr(fn, "__name__", type(fn).__name__),
        inputs,
        tree[0],
        tree[1],
        _results(traced, given, first, {id(weight): name for name, weight in weights.items()}, fn),
        weights,
        graphs,
        torch.__version__,
        defaults=defaults,
    )


def _traced(
    fn: Callable[..., Any],
    call: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    train: bool,
    options: Options,
    regions: bool,
) -> Traced:
    """What came of `call(*args, **kwargs)`, which calls `fn`."""
    traced = Traced(Collector(options))

    def backend(gm: torch.fx.GraphModule, example_inputs: Sequence[Any], **_: Any) -> Callable[..., Any]:
        compile_with(gm, example_inputs, traced.collector.compile, options)
        (output,) = (n for n in gm.graph.nodes if n.op == "output")

        def run(*flat: Any) -> list[Any]:
            traced.flat.append(flat)
            traced.results.extend(returns(output))
            traced.held.extend(torch.empty(()) for _ in traced.results)
            return list(traced.held)

        return run

    compiled = torch.compile(entry(call, "aot_compile"), backend=backend, fullgraph=True, dynamic=False)
    marked = _marked(layers(fn)) if regions else contextlib.nullcontext()
    with marked, torch.set_grad_enabled(train), whole_backward():
        traced.result = compiled(*args, **kwargs)
    if not traced.flat:
        raise TorchTPUError("nothing to compile: the function calls no operator on a tensor")
    return traced


def _tensors(leaves: Sequence[Any]) -> list[torch.Tensor]:
    return [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]


@dataclasses.dataclass(frozen=True)
class Shared:
    """An argument in the memory of an earlier one, or of a weight by its name, which may be unknown."""

    later: int
    earlier: int | str
    overlap: bool


def _shared(fn: Callable[..., Any], given: Sequence[torch.Tensor]) -> list[Shared]:
    """Of the arguments those that share memory: dynamo takes one tensor that is passed twice for one argument, and
    AOTAutograd views of one memory for one tensor."""
    found: list[Shared] = []
    names = _names(fn)
    known: dict[Any, list[tuple[int | str, torch.Tensor]]] = {}
    for tensor in reached(fn)[0]:
        known.setdefault(_memory(tensor), []).append((names.get(id(tensor), ""), tensor))
    for i, tensor in enumerate(given):
        others = known.setdefault(_memory(tensor), [])
        found.extend(Shared(i, other, held is tensor or _overlap(held, tensor)) for other, held in others)
        others.append((i, tensor))
    return found


def _memory(tensor: torch.Tensor) -> Any:
    """What tensors have in common that share memory."""
    own = local(tensor)
    plain = own.layout is torch.strided and not is_traceable_wrapper_subclass(own)
    return own.untyped_storage()._cdata if plain else id(tensor)


def _overlap(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether tensors of one memory have an element in common; of those without values it is not known."""
    one, other = local(one), local(other)
    known = not isinstance(one, FakeTensor) and one.device.type == "cpu"
    return not known or arrays.overlap(one, other)


def _apart(leaves: Sequence[Any], positions: set[int]) -> list[Any]:
    """Other tensors, of memory of their own, for those at these positions among the tensors. Nothing reads them."""
    count = itertools.count()

    def other(leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor) or next(count) not in positions:
            return leaf
        own = local(leaf).detach()
        if own.layout is not torch.strided or is_traceable_wrapper_subclass(own):
            return own.clone().requires_grad_(leaf.requires_grad)
        made = own.new_empty_strided(own.shape, own.stride())
        made = made.conj() if own.is_conj() else made
        made = torch._neg_view(made) if own.is_neg() else made
        return (made if local(leaf) is leaf else like(leaf, made)).requires_grad_(leaf.requires_grad)

    return [other(leaf) for leaf in leaves]


def _check_shared(
    shared: Sequence[Shared],
    inputs: Sequence[Mapping[str, Any]],
    graphs: Mapping[str, Captured],
) -> None:
    """Raises TorchTPUError where an argument is written that shares memory with another: what the other is then, an
    artifact does not know."""
    written = [role for graph in graphs.values() for role in graph.written]
    for later, earlier in ((one.later, one.earlier) for one in shared if one.overlap):
        name = inputs[later]["name"]
        role: Role = {"input" if isinstance(earlier, int) else "weight": earlier}
        if isinstance(earlier, int):
            other = f"`{inputs[earlier]['name']}`"
        else:
            other = f"`{earlier}`" if earlier else "a tensor of the function's"
        # A tensor without a name in the module may be any weight.
        nameless = earlier == "" and any("weight" in w for w in written)
        if {"input": later} in written or role in written or nameless:
            raise TorchTPUError(
                f"`{name}` shares memory with {other}, and one of them is changed in place, which an artifact cannot do "
                "to both\nhelp: compile it with a copy of one of them"
            )


def layers(fn: Callable[..., Any]) -> set[type[torch.nn.Module]]:
    """The classes of which a list of modules has several, the outermost, but for those that are a single operator."""
    found: set[type[torch.nn.Module]] = set()

    def walk(module: torch.nn.Module) -> None:
        children = list(module.children())
        listed = children if isinstance(module, (torch.nn.ModuleList, torch.nn.Sequential)) else []
        counts = Counter(type(child) for child in listed if any(child.children()))
        found.update(cls for cls, count in counts.items() if count > 1)
        for child in children:
            if counts[type(child)] < 2:
                walk(child)

    if isinstance(fn, torch.nn.Module):
        walk(fn)
    return found


@contextlib.contextmanager
def _marked(classes: set[type[torch.nn.Module]]) -> Iterator[None]:
    """Meanwhile, a call of such a module is a region."""
    own = {cls: cls.__dict__.get("forward") for cls in classes}
    try:
        for cls in classes:
            cls.forward = torch.compiler.nested_compile_region(cls.forward)
        yield
    finally:
        for cls, forward in own.items():
            if forward is None:
                del cls.forward
            else:
                cls.forward = forward


def _leave(*_: Any) -> list[Any]:
    raise AssertionError("a captured graph is not called")


def placed(
    fn: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """What is on the meta device, as fake tensors of the CPU: tensors that the module makes are theirs, then."""
    module = fn if isinstance(fn, torch.nn.Module) else torch.nn.Module()
    held = [*module.parameters(), *module.buffers(), *pytree.tree_leaves((args, kwargs))]
    if not any(isinstance(t, torch.Tensor) and t.device.type == "meta" for t in held):
        return fn, args, kwargs
    mode = next((t.fake_mode for t in held if isinstance(t, FakeTensor)), None) or FakeTensorMode()
    # By identity, with the tensor itself: another would get its identity if it were gone.
    moved: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def stand_in(tensor: torch.Tensor) -> torch.Tensor:
        if local(tensor) is not tensor:
            fake = like(tensor, move(local(tensor).detach()))
        elif tensor.device.type != "meta":
            return mode.from_tensor(tensor)
        else:
            with mode:
                fake = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(fake, tensor.requires_grad)
        return fake.requires_grad_(tensor.requires_grad)

    def move(tensor: Any) -> Any:
        if not isinstance(tensor, torch.Tensor) or isinstance(tensor, FakeTensor):
            return tensor
        if id(tensor) not in moved:
            moved[id(tensor)] = tensor, stand_in(tensor)
        return moved[id(tensor)][1]

    if fn is module:
        fn = module = copy.deepcopy(module)
        for part in module.modules():
            for tensors in (part._parameters, part._buffers):
                for name, tensor in tensors.items():
                    tensors[name] = move(tensor)
    args, kwargs = pytree.tree_map(move, (args, kwargs))
    return fn, args, kwargs


def local(tensor: torch.Tensor) -> torch.Tensor:
    """Of a DTensor this rank's part, which is what a graph takes."""
    own = getattr(tensor, "_local_tensor", tensor)
    assert isinstance(own, torch.Tensor)
    return own


def like(tensor: Any, own: torch.Tensor) -> torch.Tensor:
    """A DTensor that lies as another does, of another part of this rank's."""
    made: torch.Tensor = type(tensor).from_local(
        own,
        tensor.device_mesh,
        tensor.placements,
        run_check=False,
        shape=tensor.shape,
        stride=tensor.stride(),
    )
    return made.detach()


def _arguments(
    fn: Callable[..., Any], leaves: Sequence[Any], spec: pytree.TreeSpec
) -> tuple[list[dict[str, Any]], tuple[Tree, Tree], dict[str, Any]]:
    """The tensors among the arguments, the trees of positional arguments and of keywords, and what is known of parameters
    that were left out."""
    inputs: list[dict[str, Any]] = []
    flat: list[Tree] = []
    for leaf in leaves:
        if isinstance(leaf, torch.Tensor):
            flat.append({"leaf": len(inputs)})
            inputs.append(described(leaf))
        elif (constant := containers.constant(leaf)) is not None:
            flat.append(constant)
        else:
            raise TorchTPUError(
                f"an argument is a {type(leaf).__name__}, which an artifact cannot keep\n"
                "help: tensors, numbers, strings and None, in lists, tuples, dictionaries and dataclasses"
            )
    positional, named = split(tree_of(spec, iter(flat)))
    keywords = dict(named)
    called = fn.forward if isinstance(fn, torch.nn.Module) else fn
    known = containers.parameter_names(called)
    # What was passed by name and may be passed by position as well is both to the artifact.
    while len(positional) < len(known) and known[len(positional)] in keywords:
        positional.append(keywords.pop(known[len(positional)]))
    names = known[: len(positional)] + [f"arg{i}" for i in range(len(known), len(positional))]
    trees: tuple[Tree, Tree] = (
        {"dict": [[n, t] for n, t in zip(names, positional, strict=True)]},
        {"dict": [list(item) for item in keywords.items()]},
    )
    containers.name_inputs(inputs, trees)
    left_out = {"order": known, "values": containers.defaults(called, [*names, *keywords])}
    return inputs, trees, left_out


def described(value: torch.Tensor, sizes: Sizes | None = None) -> dict[str, Any]:
    """Dtype and shape, which is the largest where sizes are dynamic."""
    own = local(value)
    shape = [int(resolve(s, sizes.upper if sizes is not None else {})) for s in own.shape]
    if own is not value:
        placed = [str(placement) for placement in value.placements]  # type: ignore[attr-defined]
        return {
            "dtype": str(own.dtype).removeprefix("torch."),
            "shape": shape,
            "whole": list(value.shape),
            "placements": placed,
        }
    return {"dtype": str(value.dtype).removeprefix("torch."), "shape": shape}


def _names(fn: Callable[..., Any]) -> dict[int, str]:
    """The names of a module's parameters and buffers, by identity."""
    names: dict[int, str] = {}
    if isinstance(fn, torch.nn.Module):
        for name, tensor in (
            *fn.named_parameters(remove_duplicate=False),
            *fn.named_buffers(remove_duplicate=False),
        ):
            names.setdefault(id(tensor), name)
    return names


def _places(
    fn: Callable[..., Any], flat: Sequence[Any], given: Mapping[int, int], weights: dict[str, torch.Tensor]
) -> list[Role]:
    """What each input of the function's graph is."""
    names = _names(fn)
    places: list[Role] = []
    for value in flat:
        if id(value) in given:
            places.append({"input": given[id(value)]})
            continue
        if not isinstance(value, torch.Tensor):
            if type(value).__name__ == "DeviceMesh":  # of DTensors; its numbers are in the graph
                places.append({})
                continue
            raise TorchTPUError(
                f"the graph takes the number {value!r}\nhelp: mark sizes dynamic in a .pt2 instead"
            )
        name = names.get(id(value)) or f"tensor.{len(weights)}"
        if is_traceable_wrapper_subclass(value) and local(value) is value:
            raise TorchTPUError(
                f"weight `{name}` is a {type(value).__name__}, which an artifact cannot hold\n"
                "help: a weight is a tensor or a DTensor"
            )
        weights[name] = value
        places.append({"weight": name})
    return places


def _results(
    traced: Traced,
    given: Mapping[int, int],
    first: Captured,
    weights: Mapping[int, str],
    fn: Callable[..., Any],
) -> Tree:
    """What the function returns; a weight among it becomes an output of the first graph."""
    leaves, spec = pytree.tree_flatten(opened(traced.result))
    stands, names = traced.stands, _names(fn)
    flat: list[Tree] = []
    for leaf in leaves:
        if id(leaf) in stands:
            flat.append(first.leaves[stands[id(leaf)]])
        elif id(leaf) in given:
            flat.append({"given": given[id(leaf)]})
        elif id(leaf) in weights:
            flat.append({"leaf": first.output_of({"weight": weights[id(leaf)]})})
        elif (constant := containers.constant(leaf)) is not None:
            flat.append(constant)
        elif isinstance(leaf, torch.Tensor):
            what = f"the weight `{names[id(leaf)]}`" if id(leaf) in names else "a tensor of the function's"
            raise TorchTPUError(
                f"a result is {what}, which the program does not read\n"
                "help: return a copy of it, as .clone() makes one"
            )
        else:
            raise TorchTPUError(
                f"a result is a {type(leaf).__name__}, which an artifact cannot give\n"
                "help: return tensors, numbers, strings and None, in lists, tuples, dictionaries and dataclasses"
            )
    tree = tree_of(spec, iter(flat))
    containers.check_keys(tree, "the result")
    return tree


def _check_sizes(graph: Graph, sizes: Sizes | None) -> None:
    """Raises TorchTPUError where the graph depends on sizes that the artifact could not tell."""
    unknown = [s for s in graph.exported.symbols if sizes is None or s not in sizes.symbols]
    if unknown:
        raise TorchTPUError(
            f"the graph depends on {', '.join(unknown)}, which is not the size of an argument\n"
            "help: export it with static sizes"
        )
    if graph.exported.symbols and graph.exported.texts:
        raise TorchTPUError(
            "a lowering that was registered as StableHLO is for one set of sizes\nhelp: export it with static sizes"
        )


def rename(graph: Graph, names: Sequence[str]) -> None:
    """Gives a graph's inputs the user's names, where AOTAutograd has numbers."""
    exported = graph.exported
    if exported.kind == "backward":
        return
    payload = json.loads(exported.json)
    for spec, name in zip(payload["inputs"], names, strict=True):
        spec["name"] = name
    payload["name"] = exported.kind
    graph.exported = dataclasses.replace(exported, json=json.dumps(payload, separators=(",", ":")))


def _name(role: Role, inputs: Sequence[Mapping[str, Any]]) -> str:
    return role.get("weight") or (inputs[role["input"]]["name"] if "input" in role else "mesh")


def _flattened(places: Sequence[Role], aot_gm: torch.fx.GraphModule) -> list[Role]:
    """The roles of AOTAutograd's inputs, for which it takes DTensors apart into this rank's part and the mesh."""
    placeholders = [n for n in aot_gm.graph.nodes if n.op == "placeholder"]
    if len(placeholders) == len(places):
        return list(places)
    return [
        places[_whole(n.meta["desc"]).idx] if isinstance(n.meta.get("val"), torch.Tensor) else {}
        for n in placeholders
    ]


def _whole(description: Any) -> Any:
    """Of AOTAutograd's description of a part, that of the tensor which it is a part of."""
    while hasattr(description, "base"):
        description = description.base
    return description


def _gradients(aot_gm: torch.fx.GraphModule, names: Sequence[str], leaves: Sequence[Tree]) -> dict[str, int]:
    """By the names of the function's inputs, which outputs of the backward are their derivatives."""
    (output,) = (n for n in aot_gm.graph.nodes if n.op == "output")
    descriptions = output.meta.get("desc") or []
    found: dict[str, int] = {}
    for i, leaf in enumerate(leaves):
        if "leaf" not in leaf:
            continue
        of = i if len(leaves) == len(names) else _whole(descriptions[i]).grad_of.idx
        found[names[of]] = leaf["leaf"]
    return found


def _roles(
    graph: Graph,
    aot_gm: torch.fx.GraphModule,
    places: Sequence[Role],
    names: Sequence[str],
    found: Mapping[str, Captured],
    weights: dict[str, torch.Tensor],
    results: int,
) -> Captured:
    """What the inputs and outputs of a graph are. `places` are those of AOTAutograd's inputs, `names` those of the
    function's; of its outputs so many are results."""
    exported = graph.exported
    constants = [f"constant.{exported.kind}.{i}" for i in range(len(exported.constants))]
    weights.update(zip(constants, exported.constants, strict=True))
    held = [{"weight": name} for name in constants]
    outputs, leaves = _outputs(exported)
    if exported.kind == "backward":
        roles, notes = _backward_inputs(found["forward"], aot_gm, exported)
        gradients = _gradients(aot_gm, names, leaves)
        return Captured(graph, roles + held, outputs, [], {**notes, "gradients": gradients})
    roles = [places[i] for i in exported.tensor_inputs]
    (output,) = (n for n in aot_gm.graph.nodes if n.op == "output")
    saved: dict[str, Role] = {}
    saves: list[int] = []
    for value, plan, leaf in list(zip(returns(output), exported.outputs, leaves, strict=True))[results:]:
        role = places[plan[1]] if plan[0] == "input" else {}
        if "weight" in role:
            saved[value.name] = role  # no need to hand it out and in again
        elif "leaf" in leaf:
            saved[value.name] = {"saved": len(saves)}
            saves.append(leaf["leaf"])
    notes = {"saves": saves} if exported.kind == "forward" else {}
    own = [leaf for leaf in leaves[:results] if leaf != MESH]
    placeholders = [n for n in aot_gm.graph.nodes if n.op == "placeholder"]
    copied = {n.args[0] for n in aot_gm.graph.nodes if n.target is torch.ops.aten.copy_.default}
    written = [place for place, node in zip(places, placeholders, strict=True) if node in copied]
    return Captured(graph, roles + held, outputs, own, notes, saved, written)


def _outputs(exported: Exported) -> tuple[list[dict[str, Any]], list[Tree]]:
    """The tensors of a graph's output plan, and for each of its outputs the position among them, or its value."""
    outputs: list[dict[str, Any]] = []
    leaves: list[Tree] = []
    for kind, value in exported.outputs if exported.symbols else resolve_outputs(exported, {}):
        if kind == "const":
            leaves.append({"const": value})
            continue
        if kind == "input" and value not in exported.tensor_inputs:
            leaves.append(MESH)
            continue
        leaves.append({"number" if kind == "sym" else "leaf": len(outputs)})
        if kind == "input":
            value = exported.tensor_inputs.index(value)
        elif kind == "input_view":
            value = (exported.tensor_inputs.index(value[0]), *value[1:])
        outputs.append({"size" if kind == "sym" else kind: value})
    return outputs, leaves


def _backward_inputs(
    forward: Captured, aot_gm: torch.fx.GraphModule, exported: Exported
) -> tuple[list[Role], dict[str, Any]]:
    """Saved tensors go by the names that they have in the forward; what remains are derivatives of the results."""
    placeholders = [n for n in aot_gm.graph.nodes if n.op == "placeholder"]
    roles: list[Role] = []
    types: dict[str, dict[int, dict[str, Any]]] = {"saved": {}, "cotangent": {}}
    for i in exported.tensor_inputs:
        node = placeholders[i]
        role = forward.saved.get(node.name) or {"cotangent": len(types["cotangent"])}
        ((kind, at),) = role.items()
        if kind in types:
            types[kind][at] = described(node.meta["val"])
        roles.append(role)
    saved = [types["saved"].get(i) for i in range(len(forward.notes["saves"]))]
    return roles, {"saved": saved, "cotangents": list(types["cotangent"].values())}

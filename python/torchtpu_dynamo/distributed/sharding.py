"""Fully sharded data parallelism inside of the graph: a parameter is a shard, gathered where a forward reads it.

Reading `module.weight` gathers the rows of all ranks, and its gradient is scattered back, averaged. Both are operators
like others, so that one graph has them and a compiler may move them. Nothing here knows of ours."""

from __future__ import annotations

import dataclasses
import functools
import math
import threading
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.placement_types import Placement, _StridedShard
from torch.utils.checkpoint import checkpoint
from torch.utils.weak import WeakIdKeyDictionary

from .._torchtpu import TorchTPUError


def fully_shard(
    module: nn.Module,
    mesh: DeviceMesh | None = None,
    *,
    param_dtype: torch.dtype | None = None,
    reduce_dtype: torch.dtype | None = None,
    reshard_after_forward: bool = True,
) -> nn.Module:
    """Shards the parameters of `module`, in place, over the ranks of a mesh of one dimension; by default over all.

    Each becomes a DTensor of this rank's rows, which is what optimizers and `state_dict` see; one that
    `parallelize_module` has made a DTensor becomes one of both dimensions. Only while a forward runs is it whole, and then
    in `param_dtype`; gradients are summed in `reduce_dtype`. With `reshard_after_forward` a compiled backward gathers
    again, rather than keep whole parameters. A rank takes its rows from its own values, so that all have to start alike.
    Raises TorchTPUError for what cannot be sharded."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),)) if mesh is None else mesh
    if mesh.ndim != 1:
        raise TorchTPUError(
            f'fully_shard takes a mesh of one dimension, as mesh["dp"]; this one has {mesh.ndim}'
        )
    policy = Policy(
        mesh.get_group().group_name, mesh.size(), param_dtype, reduce_dtype, reshard_after_forward
    )
    for owner in list(module.modules()):
        if isinstance(owner, nn.RNNBase):
            raise TorchTPUError(
                f"fully_shard cannot shard {type(owner).__name__}, which computes with a list of its own of its weights"
            )
        shards: dict[str, Sharded] = dict(getattr(owner, _SHARDS, {}))
        for name, parameter in owner._parameters.items():
            if parameter is None or name in shards:
                continue
            if parameter.ndim == 0:
                raise TorchTPUError(
                    f"fully_shard cannot shard the scalar `{name}` of {type(owner).__name__}: make it one of size 1"
                )
            if parameter not in _replaced:
                sharded = Sharded.of(parameter, mesh, policy)
                _replaced[parameter] = sharded, sharded.shard(parameter, mesh.get_local_rank())
            shards[name], owner._parameters[name] = _replaced[parameter]
        if not hasattr(owner, _SHARDS) or shards.keys() != getattr(owner, _SHARDS).keys():
            setattr(owner, _SHARDS, shards)
            owner.__class__ = gathering(type(owner), tuple(shards))  # type: ignore[arg-type]
    return module


_SHARDS = "_torchtpu_shards"
"""Of a module: by name, how its parameters are sharded."""

_replaced = WeakIdKeyDictionary()
"""By parameter, what took its place: one that modules share stays one, across calls too."""


@dataclasses.dataclass(frozen=True)
class Policy:
    group: str
    ranks: int
    param_dtype: torch.dtype | None
    reduce_dtype: torch.dtype | None
    reshard: bool


@dataclasses.dataclass(frozen=True)
class Layout:
    """What makes a DTensor of a local tensor."""

    mesh: DeviceMesh
    placements: tuple[Placement, ...]
    shape: torch.Size
    stride: tuple[int, ...]

    def of(self, local: Tensor) -> DTensor:
        return DTensor.from_local(
            local, self.mesh, self.placements, run_check=False, shape=self.shape, stride=self.stride
        )


@dataclasses.dataclass(frozen=True)
class Sharded:
    """How one parameter is sharded, and made whole again."""

    policy: Policy
    rows: int
    """Of the whole parameter; of one of tensor parallelism, of this rank's part."""
    stored: Layout
    used: Layout | None
    """Of what is gathered, if tensor parallelism makes a DTensor of it."""

    @classmethod
    def of(cls, parameter: nn.Parameter, mesh: DeviceMesh, policy: Policy) -> Sharded:
        shape, stride = parameter.shape, parameter.stride()
        if not isinstance(parameter, DTensor):
            return cls(policy, shape[0], Layout(mesh, (Shard(0),), shape, stride), None)
        inner = Layout(parameter.device_mesh, parameter.placements, shape, stride)
        names = (*(mesh.mesh_dim_names or ()), *(inner.mesh.mesh_dim_names or ()))
        if len(names) != 1 + inner.mesh.ndim:
            raise TorchTPUError(
                "fully_shard with tensor parallelism takes a mesh with names, of which both are parts"
            )
        # These are rows of rows that tensor parallelism has shared out.
        parts = math.prod(n for n, p in zip(inner.mesh.shape, inner.placements, strict=True) if p.is_shard(0))
        rows = Shard(0) if parts == 1 else _StridedShard(0, split_factor=parts)
        both = Layout(mesh._get_root_mesh()[names], (rows, *inner.placements), shape, stride)
        return cls(policy, parameter.to_local().shape[0], both, inner)

    def __deepcopy__(self, _: Any) -> Sharded:
        return self

    def shard(self, parameter: nn.Parameter, rank: int) -> nn.Parameter:
        """What takes the place of the whole parameter."""
        local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
        size = chunk(self.rows, self.policy.ranks)
        first = min(rank * size, self.rows)
        return nn.Parameter(
            self.stored.of(local.detach()[first : first + size].clone()), parameter.requires_grad
        )

    def whole(self, parameter: DTensor) -> Tensor:
        """What a forward computes with."""
        local = parameter.to_local()
        if self.policy.reshard and torch.compiler.is_compiling():
            gathered = checkpoint(self.gather, local, use_reentrant=False, preserve_rng_state=False)
        else:
            gathered = self.gather(local)
        return gathered if self.used is None else self.used.of(gathered)

    def gather(self, local: Tensor) -> Tensor:
        if self.policy.param_dtype is not None:
            local = local.to(self.policy.param_dtype)
        return Gather.apply(local, self.rows, self.policy)


class Gather(torch.autograd.Function):
    """The rows of all ranks; the derivative is the mean of all ranks', of this rank's rows. Ranks transfer equal sizes."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, rows: int, policy: Policy) -> Tensor:
        ctx.own, ctx.policy = own.shape[0], policy
        ops = torch.ops._c10d_functional
        padded = resized(own, chunk(rows, policy.ranks)).contiguous()
        return resized(ops.wait_tensor(ops.all_gather_into_tensor(padded, policy.ranks, policy.group)), rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        policy: Policy = ctx.policy
        ops = torch.ops._c10d_functional
        padded = resized(gradient, policy.ranks * chunk(gradient.shape[0], policy.ranks))
        padded = padded.to(policy.reduce_dtype or gradient.dtype).contiguous()
        total = ops.wait_tensor(ops.reduce_scatter_tensor(padded, "sum", policy.ranks, policy.group))
        return (resized(total, ctx.own) / policy.ranks).to(gradient.dtype), None, None


def chunk(rows: int, ranks: int) -> int:
    """The rows of a rank; the last ranks may have fewer."""
    return -(-rows // ranks)


def resized(x: Tensor, rows: int) -> Tensor:
    """The first rows, or zeros behind them."""
    if rows <= x.shape[0]:
        return x[:rows]
    return torch.cat([x, x.new_zeros(rows - x.shape[0], *x.shape[1:])])


class Forwards(threading.local):
    """How many forwards of sharded modules this thread is in."""

    def __init__(self) -> None:
        self.depth = 0


_forwards = Forwards()


@functools.cache
def gathering(cls: type[nn.Module], names: tuple[str, ...]) -> type[nn.Module]:
    """A class of modules whose parameters of these names are whole to a forward, and shards to all else that reads them,
    such as `repr` and initialisation."""

    def member(name: str) -> property:
        def read(self: Any) -> Any:
            parameter = self._parameters[name]
            return getattr(self, _SHARDS)[name].whole(parameter) if _forwards.depth else parameter

        def write(self: Any, value: Any) -> None:
            self._parameters[name] = value

        return property(read, write)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        _forwards.depth += 1
        try:
            return cls.forward(self, *args, **kwargs)
        finally:
            _forwards.depth -= 1

    members: dict[str, Any] = {name: member(name) for name in names}
    return type(cls.__name__, (cls,), {**members, "forward": forward, "__module__": cls.__module__})

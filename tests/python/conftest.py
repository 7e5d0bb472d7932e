"""Fixtures of the Python tests, and an interpreter of payloads.

The interpreter runs a payload with torch's own operators: what it computes is what the payload says,
whatever the compiler makes of it."""

import json
import os
from typing import Any

import pytest
import torch

# Every test compiles what it tests, and leaves the user's cache alone; test_cache.py has one of its own.
os.environ.setdefault("TORCHTPU_CACHE", "0")

DTYPES = {str(d).removeprefix("torch."): d for d in vars(torch).values() if isinstance(d, torch.dtype)}


class PayloadInterpreter:
    """Runs a payload; `tensors` are as for `Executable`."""

    def __init__(self, payload: str, bindings: dict[str, int]) -> None:
        self.payload = json.loads(payload)
        self.bindings = bindings

    def number(self, text: str) -> Any:
        from torchtpu_dynamo.graph import evaluate

        return evaluate(text, self.bindings)

    def arg(self, arg: Any, values: list[Any]) -> Any:
        if isinstance(arg, list):
            return [self.arg(a, values) for a in arg]
        if not isinstance(arg, dict):
            return arg
        ((kind, value),) = arg.items()
        if kind == "v":
            return values[value]
        if kind == "sym":
            return self.number(value)
        if kind == "dtype":
            return DTYPES[value]
        if kind == "complex":
            return complex(*value)
        if kind == "device":
            return torch.device(value)
        return float(value) if kind == "float" else getattr(torch, value)

    def __call__(self, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
        rest = iter(tensors)
        values: list[Any] = [next(rest) if "val" in i else None for i in self.payload["inputs"]]
        for constant in self.payload["constants"]:
            if "hex" not in constant:
                values.append(next(rest))
                continue
            meta = constant["val"]
            data = torch.frombuffer(
                bytearray.fromhex(constant["hex"]) or bytearray(16), dtype=DTYPES[meta["dtype"]]
            )
            count = torch.Size(meta["shape"]).numel()
            values.append(data[:count].reshape(meta["shape"]))
        assert next(rest, None) is None
        for node in self.payload["nodes"]:
            target = self.payload["targets"][node["target"]]
            values.append(self.call(target, [self.arg(a, values) for a in node["args"]]))
        return [values[o["v"]] for o in self.payload["outputs"]]

    @staticmethod
    def call(target: dict[str, Any], args: list[Any]) -> Any:
        if target["name"] == "getitem":
            return args[0][args[1]]
        namespace, name, overload = target["name"].split(".")
        op = getattr(getattr(getattr(torch.ops, namespace), name), overload)
        positional = [a for a, s in zip(args, op._schema.arguments, strict=True) if not s.kwarg_only]
        keywords = {s.name: a for a, s in zip(args, op._schema.arguments, strict=True) if s.kwarg_only}
        return op(*positional, **keywords)


def register_backends() -> None:
    """Makes the backends' names known where the package is on the path without being installed."""
    from torch._dynamo import list_backends, register_backend

    from torchtpu_dynamo import backend

    for name in {"tpu", "torchtpu_dynamo"} - set(list_backends()):
        register_backend(getattr(backend, name), name=name)


register_backends()


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """Every test starts from nothing compiled, and from the same random numbers."""
    import torchtpu_dynamo

    torch.compiler.reset()
    torchtpu_dynamo.reset_stats()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()

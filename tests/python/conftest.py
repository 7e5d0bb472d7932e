"""Fixtures of the Python tests, and an interpreter of payloads.

The interpreter runs a payload with torch's own operators: what it computes is what the payload says,
whatever the compiler makes of it. Where the extension has not been built, it stands in for it."""

import importlib.util
import json
import os
import sys
import types
from typing import Any

import pytest
import torch

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


def stand_in() -> types.ModuleType:
    """A module with the extension's names over the interpreter."""
    module = types.ModuleType("torchtpu_dynamo._torchtpu")

    class TorchTPUError(RuntimeError):
        pass

    class Client:
        platform, platform_version, api_version = "stand-in", "0", (0, 0)

        def __init__(self, path: str, options: dict[str, Any], zero_copy: bool) -> None:
            pass

        def devices(self) -> list[dict[str, Any]]:
            return [{"id": 0, "kind": "stand-in"}]

    class Executable(PayloadInterpreter):
        def __call__(self, tensors: list[torch.Tensor], seed: int) -> list[torch.Tensor]:
            given = list(tensors)
            tensors.clear()
            with torch.random.fork_rng(enabled=True), torch.no_grad():
                torch.manual_seed(seed)
                return super().__call__(given)

        def stage_times(self) -> dict[str, float]:
            return {"xla": 0.0}

        def refresh(self) -> None:
            pass

        def release(self) -> None:
            pass

    class Program:
        def __init__(self, payload: str, bindings: dict[str, int], options_json: str) -> None:
            self.payload, self.bindings = payload, bindings
            parsed = json.loads(payload)
            self.name, self.kind = parsed["name"], parsed["kind"]
            names = [parsed["targets"][n["target"]]["name"] for n in parsed["nodes"]]
            self._ops = {name: names.count(name) for name in names}
            self.uses_seed = any(n.split(".")[1].startswith(("rand", "bernoulli")) for n in names if "." in n)
            for node in parsed["nodes"]:
                name = parsed["targets"][node["target"]]["name"]
                if name.startswith("aten._linalg_eigh"):
                    frame = parsed["stacks"][node["stack"]][0]
                    raise TorchTPUError(f"aten operator {name} has no lowering\n  {frame[0]}:{frame[1]}")

        def as_text(self) -> str:
            return "module @stand_in {}"

        def as_bytecode(self) -> bytes:
            return b"ML\xefR"

        def graph_text(self, stage: str = "after") -> str:
            return f"graph {stage}"

        def ops(self) -> dict[str, int]:
            return self._ops

        def stage_times(self) -> dict[str, float]:
            return {"lowering": 0.0}

        def compile(self, client: Client, options_json: str) -> Executable:
            return Executable(self.payload, self.bindings)

    for thing in (TorchTPUError, Client, Executable, Program):
        setattr(module, thing.__name__, thing)
    module.live_buffers = lambda: 0  # type: ignore[attr-defined]
    module.lowered_targets = list  # type: ignore[attr-defined]
    module.set_progress = lambda callback: None  # type: ignore[attr-defined]
    return module


if os.environ.get("TORCHTPU_STAND_IN") or importlib.util.find_spec("torchtpu_dynamo._torchtpu") is None:
    import torchtpu_dynamo

    sys.modules["torchtpu_dynamo._torchtpu"] = stand_in()
    torchtpu_dynamo._torchtpu = sys.modules["torchtpu_dynamo._torchtpu"]  # type: ignore[attr-defined]


def register_backends() -> None:
    """Makes the backends' names known where the package is on the path without being installed."""
    from torch._dynamo import list_backends, register_backend

    from torchtpu_dynamo import backend

    for name in {"tpu", "torchtpu_dynamo"} - set(list_backends()):
        register_backend(getattr(backend, name), name=name)


register_backends()

needs_extension = pytest.mark.skipif(
    not hasattr(importlib.import_module("torchtpu_dynamo._torchtpu"), "__file__"),
    reason="the extension is not built",
)


@pytest.fixture(autouse=True)
def fresh() -> Any:
    """Every test starts from nothing compiled, and from the same random numbers."""
    import torchtpu_dynamo

    torch.compiler.reset()
    torchtpu_dynamo.reset_stats()
    torch.manual_seed(0)
    yield
    torch.compiler.reset()

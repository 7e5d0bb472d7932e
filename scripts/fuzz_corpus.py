"""Makes tests/fuzz/artifacts, the files that `make fuzz` mutates: small, one for each thing that an artifact can hold."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from torchtpu_dynamo import aot_compile

FOLDER = Path(__file__).parent.parent / "tests" / "fuzz" / "artifacts"


class Counting(nn.Module):
    """State, a view among the results, an argument that is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(2))

    def forward(self, x, names):
        self.count.add_(x.sum(0))
        y = x.t() @ names["a"]
        return {"y": y, "part": y[1:], "x": x}


def loop(x):
    (x,) = torch._higher_order_ops.while_loop(lambda x: x.sum() < 100, lambda x: (x * 2 + 1,), (x,))
    return torch.cond(x[0] > 0, lambda x: x.sort().values, lambda x: x.flip(0), (x,))


def ragged():
    size = torch.export.Dim("size", min=2, max=7)
    attention = nn.MultiheadAttention(4, 2, batch_first=True)
    layer = nn.ModuleDict({"attention": attention}).eval()
    layer.forward = lambda x: (attention(x, x, x)[0].flatten(0, 1), x.shape[1], x.mT)
    return torch.export.export(layer, (torch.randn(2, 5, 4),), dynamic_shapes=({1: size},))


def main() -> None:
    torch.manual_seed(0)
    FOLDER.mkdir(parents=True, exist_ok=True)
    mlp = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Dropout(0.5), nn.Linear(4, 2).to(torch.float32))
    cases = {
        "train": (mlp, (torch.randn(2, 3),), {}, True),
        "state": (Counting(), (torch.randn(3, 2), {"a": torch.randn(3, 4)}), {}, False),
        "sizes": (ragged(), (), {}, False),
        "control": (loop, (torch.randn(5),), {}, False),
        "convolution": (nn.Conv2d(2, 3, 3).bfloat16(), (torch.randn(1, 2, 5, 5).bfloat16(),), {}, False),
        "index": (
            lambda x, i: (x[i], x.cumsum(0), torch.fft.rfft(x)),
            (torch.randn(6), torch.tensor([1, 2])),
            {},
            False,
        ),
    }
    for name, (fn, args, kwargs, train) in cases.items():
        path = FOLDER / f"{name}.ttpu"
        options = {"buckets": {"*": [4]}} if name == "sizes" else {}
        aot_compile(fn, args, kwargs, train=train, options=options, output=path)
        print(path.name, path.stat().st_size)


if __name__ == "__main__":
    main()

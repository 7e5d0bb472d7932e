"""A custom operator with a lowering: `python examples/custom_op.py`.

The operator stays what it is to PyTorch; compiled for `tpu` it is the function that is registered here."""

from __future__ import annotations

import torch

import torchtpu_dynamo


@torch.library.custom_op("example::squared_relu", mutates_args=())
def squared_relu(x: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x.detach().numpy().clip(0) ** 2)  # stands for a kernel of one's own


@squared_relu.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


@torchtpu_dynamo.register_lowering(squared_relu)
def lowering(x: torch.Tensor) -> torch.Tensor:
    return x.relu().square()


def main() -> None:
    x = torch.randn(2, 3)
    compiled = torch.compile(lambda x: squared_relu(x) + 1, backend="tpu", fullgraph=True)
    torch.testing.assert_close(compiled(x), squared_relu(x) + 1)
    print(torchtpu_dynamo.lower(lambda x: squared_relu(x) + 1, x).as_text())


if __name__ == "__main__":
    main()

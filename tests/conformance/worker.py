"""A child process: reads entries from stdin, one JSON object a line, and answers each with one.

Status of an entry is the worst of its samples: mismatch (a wrong number), error (an exception that is not ours),
refused (our error), eager_error (eager itself fails), pass; unsupported_dtype and no_samples where nothing ran.
Where a tolerance is exceeded, the same sample in float64 decides: a result that is as near to it as eager's own passes
(bfloat16 where eager rounds on the way), and so does a gradient that is off by one rounding of the sample's largest
result or gradient (what cancels). The entry's `exact` counts such samples. What does not pass is tried again with
`aot_eager`: `ceiling` tells how that fared, on the same samples."""

from __future__ import annotations

import copy
import json
import os
import sys
import time
import warnings
from typing import Any

import torch
from torch.utils import _pytree as pytree

from tests.numerics import is_as_exact, largest

from .compare import assert_equal
from .suites import SAMPLES, Sample, copied

WORST = ("mismatch", "error", "refused", "eager_error", "pass")


def main() -> None:
    warnings.filterwarnings("ignore")
    # Answers have a channel of their own: what ops print must not mix with them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 10**6
    torch._dynamo.config.accumulated_recompile_limit = 10**6
    torch.backends.mkldnn.deterministic = True
    for line in sys.stdin:
        entry = json.loads(line)
        start = time.perf_counter()
        answer = {**entry, **run(entry), "seconds": round(time.perf_counter() - start, 2)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def run(entry: dict[str, Any]) -> dict[str, Any]:
    dtype = getattr(torch, entry["dtype"])
    torch.manual_seed(0)
    try:
        samples = SAMPLES[entry["suite"]](entry["name"], dtype, entry["train"])
        if samples is None:
            return {"status": "unsupported_dtype"}
        chosen = spread(list(samples), entry["max_samples"])
        outcomes = [one(sample, entry) for sample in chosen]
    except Exception as e:
        return {"status": "no_samples", "details": [first_line(e)]}
    if not outcomes:
        return {"status": "no_samples"}
    statuses = [status for status, _ in outcomes]
    details = list(dict.fromkeys(detail for _, detail in outcomes if detail))[:3]
    status = worst(["pass" if s == "exact" else s for s in statuses])
    answer = {
        "status": status,
        "samples": len(outcomes),
        "passed": statuses.count("pass") + statuses.count("exact"),
        "details": details,
    }
    if exact := statuses.count("exact"):
        answer["exact"] = exact
    if status not in ("pass", "eager_error"):
        failed = [
            sample for sample, status in zip(chosen, statuses, strict=True) if status not in ("pass", "exact")
        ]
        answer["ceiling"] = worst([one(sample, {**entry, "backend": "aot_eager"})[0] for sample in failed])
    return answer


def worst(statuses: list[str]) -> str:
    return min(statuses, key=WORST.index)


def spread(samples: list[Sample], limit: int) -> list[Sample]:
    """At most `limit` samples at even distances, the first among them; all of them for 0."""
    if not limit or len(samples) <= limit:
        return samples
    return [samples[i * len(samples) // limit] for i in range(limit)]


def one(sample: Sample, entry: dict[str, Any]) -> tuple[str, str]:
    torch._dynamo.reset()
    eager_inputs, compiled_inputs = copied((sample.args, sample.kwargs)), copied((sample.args, sample.kwargs))
    eager_fn, fn = sample.fn, sample.fn
    if isinstance(fn, torch.nn.Module):
        eager_fn, fn = copy.deepcopy(fn), copy.deepcopy(fn)
    try:
        expected = gradients(eager_fn, eager_inputs, entry["train"])
    except Exception as e:
        return "eager_error", first_line(e)
    try:
        options = (
            {"fallback": "eager"} if entry["fallback"] and entry["backend"] == "torchtpu_dynamo" else None
        )
        compiled = torch.compile(
            fn, backend=entry["backend"], fullgraph=True, dynamic=entry["dynamic"], options=options
        )
        actual = gradients(compiled, compiled_inputs, entry["train"], fn)
    except Exception as e:
        ours = type(e).__name__ == "TorchTPUError"
        return ("refused" if ours else "error"), first_line(e)
    try:
        assert_equal(actual, expected, values=not sample.random)
        assert_equal(compiled_inputs, eager_inputs, values=not sample.random)
    except Exception as e:
        if not sample.random and as_exact(
            sample, entry["train"], (actual, compiled_inputs), (expected, eager_inputs)
        ):
            return "exact", ""
        return "mismatch", first_line(e)
    return "pass", ""


def as_exact(sample: Sample, train: bool, actual: Any, expected: Any) -> bool:
    """Whether the results that are not close are as near as eager's to those in float64."""
    inputs = pytree.tree_map(wide, copied((sample.args, sample.kwargs)))
    fn = copy.deepcopy(sample.fn).double() if isinstance(sample.fn, torch.nn.Module) else sample.fn
    try:
        exact = gradients(fn, inputs, train), inputs
    except Exception:
        return False  # float64 is not taken
    trees = [pytree.tree_leaves(tree) for tree in (actual, expected, exact)]
    if len({len(leaves) for leaves in trees}) > 1:
        return False
    # Gradients alone cancel; of other results, and of the inputs, nothing is forgiven.
    results = pytree.tree_leaves(exact[0]) if train else []
    floating = [x.detach() for x in results if isinstance(x, torch.Tensor) and x.is_floating_point()]
    scale = max(map(largest, floating), default=0.0)
    for a, e, r in zip(*trees, strict=True):
        try:
            assert_equal(a, e)
        except AssertionError:
            same = isinstance(a, torch.Tensor) and a.dtype == e.dtype and a.shape == e.shape
            if not same or not is_as_exact(a.detach(), e.detach(), r.detach(), scale):
                return False
    return True


def wide(x: Any) -> Any:
    if isinstance(x, torch.Tensor) and x.is_floating_point() and x.layout == torch.strided:
        return x.detach().double().requires_grad_(x.requires_grad)
    return x


def gradients(fn: Any, inputs: Any, train: bool, module: Any = None) -> Any:
    """Results and, where asked for, the gradients of the inputs (and of a module's parameters) for fixed random
    cotangents: for ones, those of a softmax or a normalization are zero but for rounding."""
    args, kwargs = inputs
    torch.manual_seed(1)
    results = fn(*args, **kwargs)
    if not train:
        return results
    module = fn if module is None else module
    parameters = list(module.parameters()) if isinstance(module, torch.nn.Module) else []
    leaves = [x for x in pytree.tree_leaves(inputs) if isinstance(x, torch.Tensor) and x.requires_grad]
    leaves += [p for p in parameters if p.requires_grad]
    roots = [x for x in pytree.tree_leaves(results) if isinstance(x, torch.Tensor) and x.requires_grad]
    if not roots or not leaves:
        return results, None
    generator = torch.Generator().manual_seed(2)
    # As coarse as the coarsest dtype, so that each dtype has the same.
    drawn = (torch.randn(x.shape, generator=generator, dtype=torch.float64).bfloat16() for x in roots)
    cotangents = [c.to(x.dtype) for c, x in zip(drawn, roots, strict=True)]
    found = torch.autograd.grad(roots, leaves, cotangents, allow_unused=True)
    zeros = (torch.zeros_like(x) if g is None else g for g, x in zip(found, leaves, strict=True))
    return pytree.tree_map(lambda x: x.detach() if isinstance(x, torch.Tensor) else x, results), list(zeros)


def first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:300]


if __name__ == "__main__":
    main()

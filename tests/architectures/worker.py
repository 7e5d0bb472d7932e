"""A child process: reads entries from stdin, one JSON object a line, and answers each with one.

Each of forward (inference) and training (outputs, then gradients of all parameters) is run in eager mode and compiled.
A mode's status: pass; mismatch (another number, shape or dtype); refused (our error); error (another exception);
eager_error (the model itself fails). Where the backend does not pass, `baseline` has the status under aot_eager.

Equal is: within 1e-4 of the largest element of the tensor. Where that fails, the same model in float64 decides
whether float32 allows better: the error must not be more than `SLACK` times eager's own, and the mode's `noise` is
set. Both are float32 sums in another order, so neither error is the larger one by right. What a model computes in
float32 by its own casts is not float64 in the reference either, so this can only refuse what is right.

Rounding also decides on which side of 0 the input of a relu falls that is 0 but for rounding, and a gradient is there
or not; and which of near-equal scores are the highest, and other candidates are chosen. So a mismatch is tried again
with other weights, `DRAWS` times, and in float64; a wrong program is wrong with all weights and dtypes. The mode's `again`
says with which it passed."""

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

from tests.numerics import SLACK, error, largest

from . import zoo

TOLERANCE = 1e-4
DRAWS = 2
# Of the largest gradient of the model: what float32 leaves of a sum that cancels, such as the gradient of a bias
# that a normalization or a softmax takes out again.
CANCELLED = 2e-6


def main() -> None:
    warnings.filterwarnings("ignore")
    # Answers have a channel of their own: what libraries print must not mix with them.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    torch._dynamo.config.recompile_limit = 64
    torch.backends.mkldnn.deterministic = True
    for line in sys.stdin:
        entry = json.loads(line)
        start = time.perf_counter()
        answer = {**entry, **run(entry), "seconds": round(time.perf_counter() - start, 1)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def run(entry: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    for mode in ("forward", "training"):
        result = attempt(entry, entry["backend"], mode == "training")
        if result["status"] == "mismatch":
            draws = [f"other weights {draw}" for draw in range(1, DRAWS + 1)]
            chosen = "AssertionError: result" in result["detail"]  # no relu's gradient
            for how in ["float64", *draws] if chosen else [*draws, "float64"]:
                again = attempt(entry, entry["backend"], mode == "training", how)
                if again["status"] == "pass":
                    result = {**again, "again": how, "first": result["detail"]}
                    break
        if result["status"] not in ("pass", "eager_error") and entry["backend"] != "aot_eager":
            result["baseline"] = attempt(entry, "aot_eager", mode == "training")
        answer[mode] = result
    answer["status"] = next((m["status"] for m in answer.values() if m["status"] != "pass"), "pass")
    answer["settled"] = zoo.settings(entry["library"], entry["name"])
    return answer


def attempt(entry: dict[str, Any], backend: str, training: bool, how: str = "") -> dict[str, Any]:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    start = time.perf_counter()
    try:
        made = zoo.make(entry["library"], entry["name"])
        made[0].train(training)
        if how == "float64":
            made = in_float64(made)
        elif how:
            redraw(made[0], int(how.rpartition(" ")[2]))
        expected = outcome(fresh(made), training, 1)
        drawn = not torch.equal(torch.get_rng_state(), torch.Generator().manual_seed(1).get_state())
        # Our backend draws other numbers than eager: values say nothing where they depend on what was drawn.
        random = drawn and not alike(outcome(fresh(made), training, 2), expected)
    except Exception as e:
        return {"status": "eager_error", "detail": first_line(e)}
    try:
        mine = fresh(made)
        compiled = torch.compile(mine[0], backend=backend)
        actual = outcome(mine, training, 1, compiled)
    except Exception as e:
        ours = type(e).__name__ == "TorchTPUError"
        return {"status": "refused" if ours else "error", "detail": first_line(e), **figures(start)}
    result: dict[str, Any] = {"status": "pass", **({"random": True} if random else {})}
    try:
        result.update(compare(actual, expected, made, training, random))
    except AssertionError as e:
        result.update(status="mismatch", detail=first_line(e))
    except Exception as e:
        result.update(status="error", detail=f"comparing: {first_line(e)}")
    return {**result, **figures(start)}


def redraw(module: torch.nn.Module, draw: int) -> None:
    """Changes every weight by a tenth or so."""
    generator = torch.Generator().manual_seed(draw)
    with torch.no_grad():
        for p in module.parameters():
            if p.is_floating_point():
                p.mul_(1 + 0.1 * torch.randn(p.shape, generator=generator).to(p.dtype))


def figures(start: float) -> dict[str, Any]:
    counters = torch._dynamo.utils.counters
    return {
        "breaks": sum(counters["graph_break"].values()),
        "graphs": counters["stats"]["unique_graphs"],
        "seconds": round(time.perf_counter() - start, 1),
    }


def fresh(made: zoo.Made) -> zoo.Made:
    return copy.deepcopy(made)


Outcome = dict[str, torch.Tensor]


def outcome(made: zoo.Made, training: bool, seed: int, call: Any = None) -> Outcome:
    """The tensors by name: results, then gradients and changed buffers."""
    module, inputs = made
    torch.manual_seed(seed)
    with torch.set_grad_enabled(training):
        results = (module if call is None else call)(**inputs)
    found = {
        f"result{i}": x for i, x in enumerate(pytree.tree_leaves(results)) if isinstance(x, torch.Tensor)
    }
    assert found, f"no tensors in {type(results).__name__}"
    if training:
        loss = sum(weighted(x) for x in found.values() if x.requires_grad)
        if not isinstance(loss, torch.Tensor):
            return found
        loss.backward()
        for name, p in module.named_parameters():
            if p.grad is not None:
                found[f"grad {name}"] = p.grad
        found |= {f"buffer {name}": b for name, b in module.named_buffers()}
    return {name: x.detach().clone() for name, x in found.items()}


def weighted(x: torch.Tensor) -> torch.Tensor:
    """A scalar of a result: weighted, since the mean of what was normalized is constant."""
    x = torch.where(x.isfinite(), x, 0)
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(x.numel()))
    return (x * weights.to(x.real.dtype)).abs().mean() if x.is_complex() else (x * weights.to(x.dtype)).mean()


def alike(actual: Outcome, expected: Outcome) -> bool:
    return actual.keys() == expected.keys() and all(
        actual[n].shape == e.shape and close(actual[n], e, TOLERANCE) for n, e in expected.items()
    )


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float, scale: float = 0.0) -> bool:
    if not (expected.is_floating_point() or expected.is_complex()):
        return torch.equal(actual, expected)
    # Both infinite or both nan is equal.
    finite = expected.isfinite()
    if not torch.equal(actual.isnan(), expected.isnan()) or not torch.equal(
        actual[~finite & ~expected.isnan()], expected[~finite & ~expected.isnan()]
    ):
        return False
    return error(actual, expected) <= tolerance * largest(expected) + scale


def compare(
    actual: Outcome, expected: Outcome, made: zoo.Made, training: bool, random: bool
) -> dict[str, Any]:
    """Raises AssertionError where they differ."""
    gone, new = expected.keys() - actual.keys(), actual.keys() - expected.keys()
    # AOTAutograd gives a parameter without an effect zeros where eager gives it nothing.
    new = {n for n in new if not n.startswith("grad ") or actual[n].any()}
    assert not gone and not new, f"missing {sorted(gone)[:3]}, unexpected {sorted(new)[:3]}"
    for name, e in expected.items():
        a = actual[name]
        assert a.dtype == e.dtype, f"{name}: dtype {a.dtype}, not {e.dtype}"
        assert a.shape == e.shape, f"{name}: shape {tuple(a.shape)}, not {tuple(e.shape)}"
    if random:
        return {}
    scale = CANCELLED * max((largest(e) for n, e in expected.items() if n.startswith("grad ")), default=0.0)
    doubtful = [
        n
        for n, e in expected.items()
        if not close(actual[n], e, TOLERANCE, scale if n.startswith("grad ") else 0.0)
    ]
    if not doubtful:
        return {}
    try:
        reference = outcome(in_float64(made), training, 1)
    except Exception as e:
        reference = {}
        why = f"no float64 reference: {first_line(e)}"
    for name in doubtful:
        e = expected[name]
        off, size = error(actual[name], e) if e.is_floating_point() else 1.0, largest(e)
        message = f"{name}: off by {off:.2e}, largest {size:.2e}, of {len(doubtful)} tensors"
        assert reference, f"{message}; {why}"
        assert e.is_floating_point(), f"{name}: other integers"
        r = reference[name]
        assert r.shape == e.shape and torch.equal(actual[name].isnan(), e.isnan()), f"{message}; nan"
        theirs, mine = error(e, r), error(actual[name], r)
        assert mine <= SLACK * theirs, f"{message}; from float64: {mine:.2e}, eager {theirs:.2e}"
    worst = max(doubtful, key=lambda n: error(actual[n], expected[n]) / (largest(expected[n]) or 1.0))
    share = error(actual[worst], expected[worst]) / (largest(expected[worst]) or 1.0)
    return {"noise": f"{worst}: {share:.1e} of the largest, within {SLACK:.0f} of eager's own error"}


def in_float64(made: zoo.Made) -> zoo.Made:
    module, inputs = fresh(made)

    def wide(x: Any) -> Any:
        return x.double() if isinstance(x, torch.Tensor) and x.dtype == torch.float32 else x

    return module.double(), pytree.tree_map(wide, inputs)


def first_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]


if __name__ == "__main__":
    main()

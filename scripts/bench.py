"""The benchmarks: `make bench` prints every table of the README's "Speed" section.

Every ratio is taken within one run, as the median of interleaved repetitions: machines are shared and noisy.
`python scripts/bench.py [PART ...]` runs some of them; `--quick` repeats less.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["TORCHTPU_CACHE"] = "0"  # first calls are cold, but for `warm`

import torch  # noqa: E402  after the environment that it and its peers read

QUICK = False


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def show(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    print(f"\n### {title}\n\n| {' | '.join(header)} |\n|{'---|' * len(header)}")
    for r in rows:
        print(f"| {' | '.join(r)} |")
    sys.stdout.flush()


def interleaved(variants: dict[str, Callable[[], Any]], repeat: int) -> dict[str, float]:
    """Median seconds of each, run in turns."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeat):
        for name, fn in variants.items():
            start = time.perf_counter()
            fn()
            times[name].append(time.perf_counter() - start)
    return {name: statistics.median(t) for name, t in times.items()}


def chain(nodes: int) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function of about that many FX nodes: layers of linear, norm, activation and residual."""

    def fn(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(nodes // 10):
            h = x @ w
            h = torch.sigmoid(h) * h + 1.5
            h = h - h.mean(-1, keepdim=True)
            x = (x + torch.tanh(h)).reshape(4, 2, 8).permute(1, 0, 2).reshape(8, 8)
        return x

    return fn


def compiler() -> None:
    """FX payload to StableHLO bytecode, without XLA."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torchtpu_dynamo._torchtpu import Program

    from torchtpu_dynamo.export import export

    def stages_of(payload: bytes) -> dict[str, float]:
        program = Program(payload, {}, "")
        start = time.perf_counter()
        program.as_bytecode()
        return {**program.stage_times(), "emit": time.perf_counter() - start}

    rows = []
    for nodes in (300, 1000, 5000, 20000):
        gm = make_fx(chain(nodes), tracing_mode="fake")(torch.randn(8, 8), torch.randn(8, 8))
        exported = export(gm, "inference", "chain", [])
        best = min(
            (stages_of(exported.json) for _ in range(3 if QUICK else 7)),
            key=lambda t: sum(t.values()),
        )
        total = sum(best.values())
        stages = "  ".join(f"{k} {v * 1e3:.1f}" for k, v in best.items())
        rows.append(
            [str(exported.nodes), f"{total * 1e3:.1f} ms", f"{total / exported.nodes * 1e6:.2f} us", stages]
        )
    show(
        "Compiler: FX payload to StableHLO bytecode (bar: 10 us a node, linear)",
        ["FX nodes", "time", "per node", "ms by stage"],
        rows,
    )


def sizes() -> None:
    """A symbolic graph at new sizes, without XLA: nothing is traced or parsed again."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torchtpu_dynamo._torchtpu import Program, Source

    from torchtpu_dynamo.export import export

    def layers(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        for _ in range(3000 // 10):
            h = x @ w
            h = torch.sigmoid(h) * h + 1.5
            h = h - h.mean(0, keepdim=True)
            x = (x + torch.tanh(h)).reshape(x.shape[0], 2, 4).permute(0, 2, 1).reshape(x.shape[0], 8)
        return x

    gm = make_fx(layers, tracing_mode="symbolic")(torch.randn(6, 8), torch.randn(8, 8))
    exported = export(gm, "inference", "sizes", [])

    def at(size: int) -> dict[str, int]:
        return {s: 8 if dim else size for s, (_, dim) in exported.symbols.items()}

    start = time.perf_counter()
    source = Source(exported.json)
    parse = time.perf_counter() - start
    times, stages = [], {}
    for size in range(8, 8 + 2 * (5 if QUICK else 15), 2):
        start = time.perf_counter()
        program = Program(source, at(size), "")
        times.append(time.perf_counter() - start)
        stages = program.stage_times()
    shown = "  ".join(f"{k} {v * 1e3:.1f}" for k, v in stages.items() if k != "import")
    median = statistics.median(times)
    show(
        "New sizes for a symbolic graph, in the compiler (bar: 30 ms at 3,000 nodes)",
        ["FX nodes", "parsed once", "each new size", "ms by stage"],
        [[str(exported.nodes), f"{parse * 1e3:.1f} ms", f"{median * 1e3:.1f} ms", shown]],
    )


SMALL: list[tuple[Callable[..., Any], list[tuple[int, ...]]]] = [
    (torch.sin, [(5, 5)]),
    (torch.sum, [(5, 5)]),
    (lambda x: torch.softmax(x, -1), [(5, 5)]),
    (lambda x: torch.cumsum(x, 0), [(5, 5)]),
    (lambda x: torch.sort(x, descending=True), [(5, 5)]),
    (lambda x: torch.var_mean(x, 1), [(5, 5)]),
    (lambda x, y: torch.add(x, y, alpha=2), [(5, 5), (5,)]),
    (torch.matmul, [(3, 5, 4), (4, 2)]),
    (lambda x, i: x.gather(1, i.long().abs() % 5), [(5, 5), (5, 5)]),
    (lambda x, w: torch.conv2d(x, w, padding=1), [(2, 3, 8, 8), (4, 3, 3, 3)]),
    (lambda x: torch.nn.functional.max_pool2d(x, 2), [(2, 3, 8, 8)]),
    (lambda x, w: torch.nn.functional.layer_norm(x, (8,), w), [(4, 8), (8,)]),
    (lambda x: torch.nn.functional.interpolate(x, scale_factor=2, mode="bilinear"), [(1, 2, 4, 4)]),
    (lambda x: torch.linalg.qr(x), [(5, 4)]),
    (lambda q, k, v: torch.nn.functional.scaled_dot_product_attention(q, k, v), [(1, 2, 5, 8)] * 3),
]


def small() -> None:
    """Graphs of a few nodes, as OpInfo's: what is ours of a first call, and what is XLA's."""
    import torchtpu_dynamo
    from torchtpu_dynamo import backend

    compile_graph = backend.compile_graph
    spent: list[float] = []

    def timed(*args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        made = compile_graph(*args, **kwargs)
        spent.append(time.perf_counter() - start)
        return made

    backend.compile_graph = timed
    ours, xla, first = [], [], []
    try:
        for fn, shapes in SMALL * (1 if QUICK else 3):
            torch._dynamo.reset()
            torchtpu_dynamo.reset_stats()
            spent.clear()
            inputs = [torch.randn(shape) for shape in shapes]
            start = time.perf_counter()
            torch.compile(fn, backend="torchtpu_dynamo", fullgraph=True)(*inputs)
            first.append(time.perf_counter() - start)
            xla.append(torchtpu_dynamo.stats().stage_seconds["xla"])
            ours.append(sum(spent) - xla[-1])
    finally:
        backend.compile_graph = compile_graph
    ours, xla, first = ours[1:], xla[1:], first[1:]  # the first one loads what all others share
    row = [f"{statistics.median(t) * 1e3:.2f} ms" for t in (first, xla, ours)] + [f"{max(ours) * 1e3:.2f} ms"]
    show(
        "First calls of small graphs (bar: 3 ms of ours)",
        ["graphs", "first call", "XLA", "ours", "ours, largest"],
        [[str(len(ours)), *row]],
    )


def call() -> None:
    """What a call adds below AOTAutograd's wrapper, beyond the plugin's own execution."""
    from torch.fx.experimental.proxy_tensor import make_fx
    from torchtpu_dynamo._torchtpu import Program

    from torchtpu_dynamo import plugins
    from torchtpu_dynamo.export import export

    client = plugins.client(None, None)

    def prepared(count: int) -> tuple[Any, list[torch.Tensor]]:
        # Small enough that the plugin runs the program on our thread: waking its own would be most of the time.
        tensors = [torch.randn(2) for _ in range(count)]

        def fn(*xs: torch.Tensor) -> torch.Tensor:
            return sum(xs[1:], xs[0])

        gm = make_fx(fn, tracing_mode="fake")(*tensors)
        exported = export(gm, "inference", "call", range(1, count))
        return Program(exported.json, {}, "").compile(client, ""), tensors

    subjects = {count: prepared(count) for count in (2, 100, 400)}
    samples: dict[int, list[float]] = {count: [] for count in subjects}
    bare: dict[int, list[float]] = {count: [] for count in subjects}
    for _ in range(15 if QUICK else 61):
        for count, (executable, tensors) in subjects.items():
            start = time.perf_counter()
            for _ in range(400):
                executable(list(tensors), 0)
            samples[count].append((time.perf_counter() - start) / 400)
            bare[count].append(executable.execute_only(tensors, 400))
    rows = []
    base = None
    for count in subjects:
        total, execute = statistics.median(samples[count]) * 1e6, statistics.median(bare[count]) * 1e6
        ours = total - execute
        per = "" if base is None else f"{(ours - base[1]) / (count - base[0]):.3f} us"
        base = base or (count, ours)
        rows.append([str(count), f"{total:.1f} us", f"{execute:.1f} us", f"{ours:.1f} us", per])
    show(
        "Call (bar: 6 us with 2 tensors, 0.12 us per further static one)",
        ["tensors", "call", "PJRT execute", "ours", "per further tensor"],
        rows,
    )


def models() -> None:
    """Forward on CPU, f32, against eager, inductor and JAX."""
    from scripts import bench_models

    rows = []
    repeat = 3 if QUICK else 7
    for name in bench_models.NAMES:
        module, inputs = bench_models.torch_model(name)
        jax_fn = bench_models.jax_model(name)
        with torch.no_grad():
            variants: dict[str, Callable[[], Any]] = {"eager": lambda m=module, i=inputs: m(*i)}
            first = {}
            for backend, label in (("torchtpu_dynamo", "ours"), ("inductor", "inductor")):
                torch._dynamo.reset()
                compiled = torch.compile(module, backend=backend, fullgraph=True, dynamic=False)
                say(f"{name}: first call of {label}")
                start = time.perf_counter()
                out = compiled(*inputs)
                first[label] = time.perf_counter() - start
                torch.testing.assert_close(out, module(*inputs), rtol=1e-3, atol=1e-3)
                variants[label] = lambda c=compiled, i=inputs: c(*i)
            if jax_fn is not None:
                start = time.perf_counter()
                jax_fn()
                first["JAX"] = time.perf_counter() - start
                variants["JAX"] = jax_fn
            say(f"{name}: timing")
            for fn in variants.values():
                fn()
            t = interleaved(variants, repeat)
        peers = [k for k in t if k not in ("ours", "eager") and not (name == "resnet50" and k == "inductor")]
        best = min(t[k] for k in peers)
        rows.append(
            [name]
            + [
                f"{t[k]:.3f} ({first[k]:.1f})" if k in first else f"{t[k]:.3f}"
                for k in ("eager", "inductor", "JAX", "ours")
                if k in t
            ]
            + [f"{t['ours'] / t['eager']:.2f}", f"{t['ours'] / best:.2f}"]
        )
    show(
        "Forward, CPU, f32: seconds (first call)",
        ["model", "eager", "inductor", "JAX", "ours", "ours / eager", "ours / best peer (ResNet-50: JAX)"],
        rows,
    )


TRAINING = """
import re, sys, time, json, torch, transformers
backend = sys.argv[1]
torch.manual_seed(0)
config = transformers.GPT2Config(attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0, use_cache=False)
model = transformers.GPT2LMHeadModel(config)
ids = torch.randint(0, config.vocab_size, (4, 128))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
net = model if backend == "eager" else torch.compile(model, backend=backend)
times = []
for step in range(int(sys.argv[2])):
    start = time.perf_counter()
    optimizer.zero_grad()
    logits = net(ids).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
    loss.backward()
    optimizer.step()
    times.append(time.perf_counter() - start)
# Not getrusage: its peak begins with that of the process that started this one.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 2**20
print(json.dumps(dict(times=times, rss=peak, loss=loss.item())))
"""


def training() -> None:
    """GPT-2 small, AdamW, in a process each: step time, first step, peak memory."""
    rows = []
    results = {}
    for backend in ("eager", "inductor", "torchtpu_dynamo"):
        say(f"training: {backend}")
        out = subprocess.run(
            [sys.executable, "-c", TRAINING, backend, "4" if QUICK else "8"],
            capture_output=True,
            text=True,
            check=True,
        )
        results[backend] = json.loads(out.stdout.strip().splitlines()[-1])
    peak = max(results[b]["rss"] for b in ("eager", "inductor"))
    for backend, r in results.items():
        step = statistics.median(r["times"][1:])
        base = statistics.median(results["eager"]["times"][1:])
        rows.append(
            [
                backend,
                f"{step:.3f} s",
                f"{step / base:.2f}",
                f"{r['times'][0]:.1f} s",
                f"{r['rss']:.2f} GiB",
                f"{r['rss'] / peak:.2f}",
                f"{r['loss']:.5f}",
            ]
        )
    show(
        "Training step, GPT-2 small, 4 x 128, f32, AdamW",
        ["", "step", "/ eager", "first step", "peak RSS", "/ larger peer (bar 1.1)", "last loss"],
        rows,
    )


def import_() -> None:
    """Import of the package beyond torch's."""
    code = "import time,torch; s=time.perf_counter(); import torchtpu_dynamo; print(time.perf_counter()-s)"
    times = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
        for _ in range(5)
    ]
    show("Import beyond torch's (bar 0.3 s)", ["median"], [[f"{statistics.median(times):.3f} s"]])


WARM = """
import sys, time
start = time.perf_counter()
import torch
torch.manual_seed(0)
layers = [torch.nn.TransformerEncoderLayer(64, 4, batch_first=True, dropout=0.0) for _ in range(6)]
model = torch.nn.Sequential(*layers)
torch.compile(model, backend=sys.argv[1])(torch.randn(2, 16, 64)).sum().backward()
seconds, cpu = time.perf_counter() - start, time.process_time()
counts = [0, 0]
if sys.argv[1] != "eager":
    import torchtpu_dynamo
    stats = torchtpu_dynamo.stats()
    counts = [stats.compiler_calls, stats.compilations]
print(seconds, cpu, *counts)
"""


def warm() -> None:
    """From import to the first result and its gradients, in a process whose graphs an earlier one compiled."""
    folder = tempfile.TemporaryDirectory()
    names = ("TORCHTPU_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")
    environment = {**os.environ, "TORCHTPU_CACHE": "1", **{n: os.path.join(folder.name, n) for n in names}}

    def run(backend: str) -> list[float]:
        command = [sys.executable, "-c", WARM, backend]
        out = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
        return [float(x) for x in out.stdout.split()]

    with folder:
        say("warm: cold process")
        cold = run("torchtpu_dynamo")
        samples: dict[str, list[list[float]]] = {"eager": [], "torchtpu_dynamo": []}
        for _ in range(3 if QUICK else 7):
            for backend, times in samples.items():
                times.append(run(backend))
    median = {b: [statistics.median(column) for column in zip(*times)] for b, times in samples.items()}
    base = median["eager"]
    rows = [
        [name, f"{t[0]:.2f} s", f"{t[0] / base[0]:.2f}", f"{t[1]:.2f} s", f"{t[2]:.0f}", f"{t[3]:.0f}"]
        for name, t in (("eager", base), ("ours, cold", cold), ("ours, warm", median["torchtpu_dynamo"]))
    ]
    show(
        'From import to first result, 6 transformer layers, training (bar: 1.3 of backend="eager")',
        ["", "time", "/ eager", "CPU time", "compiler calls", "XLA compilations"],
        rows,
    )


PARTS = {
    "compiler": compiler,
    "sizes": sizes,
    "small": small,
    "call": call,
    "import": import_,
    "warm": warm,
    "models": models,
    "training": training,
}


def main() -> None:
    global QUICK
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[])
    parser.add_argument("--quick", action="store_true")
    args = parser.parse_args()
    QUICK = args.quick
    torch.set_num_threads(2)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    for name in args.parts or PARTS:
        PARTS[name]()


if __name__ == "__main__":
    main()

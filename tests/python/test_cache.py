"""Warm starts: what a later process finds, what it must not find, and every fault that a cache can have.

`again` stands for another process: dynamo forgets everything, and only the disk remembers. The first test uses real
ones. The store alone, with every flipped bit and two hundred processes, is compiler/cache/tests/store.rs."""

import contextlib
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from torchtpu_dynamo import Stats, TorchTPUError, backend, cache, reset_stats, stats
from torchtpu_dynamo.backend import aot_cache


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own, and one of torch's."""
    monkeypatch.setenv("TORCHTPU_CACHE", "1")
    monkeypatch.setenv("TORCHTPU_CACHE_DIR", str(tmp_path / "ours"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "torch"))
    monkeypatch.setattr(cache, "_warned", False)
    return tmp_path / "ours"


@pytest.fixture
def ours_alone() -> Iterator[None]:
    """Without AOTAutograd's cache, as where it bypasses a graph or where torch lacks it."""
    with torch._functorch.config.patch(enable_autograd_cache=False):
        yield


def again(fn: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, Stats]:
    """Compiles and calls `fn` as a new process would; the result, and what it took."""
    torch.compiler.reset()
    reset_stats()
    result = torch.compile(fn, backend="torchtpu_dynamo", options=options)(*args)
    return result, stats()


def is_warm(found: Stats, graphs: int = 1) -> bool:
    """Nothing was compiled; where torch can keep graphs, our compiler was not even called."""
    calls = 0 if aot_cache() is not None and aot_cache()._supported() else graphs
    return (found.compilations, found.compiler_calls, found.cache.hits) == (0, calls, graphs)


def affine(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch.relu(x @ w) + 1


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.exe"))


SCRIPT = """
import json, sys, torch
from torchtpu_dynamo import backend, stats
from torch._dynamo import list_backends, register_backend
if "torchtpu_dynamo" not in list_backends():
    register_backend(backend.torchtpu_dynamo, name="torchtpu_dynamo")
torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 2))
torch.compile(model, backend="torchtpu_dynamo")(torch.ones(4, 8)).sum().backward()
s = stats()
print(json.dumps([s.compilations, s.compiler_calls, s.cache.hits, s.cache.errors,
                  model[0].weight.grad.tolist()]))
"""


@pytest.mark.sample
def test_a_second_process_compiles_nothing() -> None:
    def process() -> list[Any]:
        out = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
        return list(json.loads(out.stdout))

    cold, warm = process(), process()
    assert cold[:4] == [2, 2, 0, 0]
    calls = 0 if aot_cache() is not None and aot_cache()._supported() else 2
    assert warm[:4] == [0, calls, 2, 0]
    assert warm[4] == cold[4]


def test_values_are_not_in_the_key() -> None:
    again(affine, torch.randn(3, 4), torch.randn(4, 5))
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    result, found = again(affine, x, w)
    assert is_warm(found)
    torch.testing.assert_close(result, affine(x, w))


def test_what_a_forward_may_keep_is_in_the_key() -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5, requires_grad=True)

    def kept(limit: int | None) -> tuple[int, Stats]:
        result, found = again(lambda x, w: (x @ w).sin().cos(), x, w, activation_memory=limit)
        given = {x.data_ptr(), w.data_ptr()}
        return sum(t.nbytes for t in result.grad_fn.saved_tensors if t.data_ptr() not in given), found

    cold = {limit: kept(limit)[0] for limit in (None, 0)}
    assert cold[0] == 0 < cold[None]
    for limit, size in cold.items():
        warm, found = kept(limit)
        assert warm == size and is_warm(found)


def test_ours_alone_saves_the_compilation(ours_alone: None) -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    again(affine, x, w)
    result, found = again(affine, x, w)
    assert (found.compilations, found.compiler_calls, found.cache.hits) == (0, 1, 1)
    torch.testing.assert_close(result, affine(x, w))


def test_a_torch_that_lacks_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "aot_cache", lambda: None)
    x = torch.ones(2, 2, requires_grad=True)
    for _ in range(2):
        result, _ = again(affine, x, torch.ones(2, 2))
        result.sum().backward()
    assert (stats().compilations, stats().compiler_calls, stats().cache.hits) == (0, 2, 2)


@pytest.mark.parametrize("kept_by_torch", [True, False])
def test_what_differs_is_not_found(kept_by_torch: bool) -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    functions: list[Callable[..., torch.Tensor]] = [
        affine,
        lambda x, w: torch.relu(x @ w) + 2,
        lambda x, w: torch.relu(x @ w) + 1.0000000000000002,
        lambda x, w: torch.relu(x @ w) - 1,
        lambda x, w: torch.tanh(x @ w) + 1,
        lambda x, w: torch.relu(x @ w) + torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0]),
        lambda x, w: torch.relu(x @ w) + torch.tensor([1.0, 2.0, 3.0, 4.0, 6.0]),
    ]
    cases: list[tuple[Callable[..., torch.Tensor], tuple[torch.Tensor, ...], dict[str, Any]]] = [
        *((fn, (x, w), {}) for fn in functions),
        (affine, (x.double(), w.double()), {}),
        (affine, (torch.randn(2, 4), w), {}),
        (affine, (x, torch.randn(5, 4).t()), {}),
        (affine, (x, w), {"check_bounds": True}),
        (affine, (x, w), {"disable_passes": ["cse"]}),
        (affine, (x, w), {"xla_options": {"xla_cpu_enable_fast_min_max": True}}),
    ]
    with torch._functorch.config.patch(enable_autograd_cache=kept_by_torch), torch.no_grad():
        for fn, args, options in cases:
            for compilations in (1, 0):
                torch._dynamo.config.automatic_dynamic_shapes = False
                result, found = again(fn, *args, **options)
                assert (found.compilations, found.cache.errors) == (compilations, 0), options
                torch.testing.assert_close(result, fn(*args))
        with precision("medium"):
            assert again(affine, x, w)[1].compilations == 1


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(name)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def edited(lines_above: int, body: str) -> Callable[..., torch.Tensor]:
    """A function of a file that has changed above it."""
    source = "import torch\n" + "\n" * lines_above + f"def fn(x):\n    return {body}\n"
    names: dict[str, Any] = {}
    exec(compile(source, f"/edited/{lines_above}.py", "exec"), names)
    return names["fn"]


def test_the_lines_of_the_user_are_not_in_the_key(ours_alone: None) -> None:
    x, body = torch.randn(3), "torch.sin(x) * x[0]"
    again(edited(1, body), x)
    assert again(edited(7, body), x)[1].compilations == 0
    # With checks they are part of what is raised.
    again(edited(1, body), x, check_bounds=True)
    assert again(edited(7, body), x, check_bounds=True)[1].compilations == 1


def test_what_torch_keeps_names_the_lines_of_today() -> None:
    for lines_above in (1, 7):
        fn = edited(lines_above, "x[x.to(torch.int64)]")
        again(fn, torch.zeros(3), check_bounds=True)
        with pytest.raises(TorchTPUError, match=f"/edited/{lines_above}.py:{lines_above + 3}"):
            again(fn, torch.full((3,), 9.0), check_bounds=True)


def test_a_bounds_error_of_a_cached_program_names_the_line() -> None:
    def take(x: torch.Tensor, i: torch.Tensor) -> torch.Tensor:
        return x[i]

    x = torch.arange(4.0)
    again(take, x, torch.tensor([3]), check_bounds=True)
    _, found = again(take, x, torch.tensor([0]), check_bounds=True)
    assert is_warm(found)
    with pytest.raises(TorchTPUError, match=r"test_cache\.py:\d+"):
        again(take, x, torch.tensor([4]), check_bounds=True)


def test_training_with_buffers_that_are_written() -> None:
    def step() -> list[torch.Tensor]:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))
        result, _ = again(model, torch.randn(8, 4))
        result.sum().backward()
        return [result.detach(), *(p.grad for p in model.parameters()), *model.buffers()]

    cold, warm = step(), step()
    assert stats().compilations == 0
    for a, b in zip(cold, warm, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_graph_with_checks_of_its_own_is_not_mistaken() -> None:
    """Its tokens are forgotten by what torch keeps."""
    x = torch.randn(3, 3) + 4 * torch.eye(3)
    for _ in range(2):
        result, found = again(torch.linalg.inv, x)
        torch.testing.assert_close(result, torch.linalg.inv(x))
    assert (found.compilations, found.cache.hits) == (0, 1)


def test_a_graph_may_be_retained() -> None:
    x = torch.ones(3, requires_grad=True)
    for _ in range(2):
        result, _ = again(lambda x: (x.sin() * x).sum(), x)
        first = torch.autograd.grad(result, x, retain_graph=True)
        assert torch.equal(first[0], torch.autograd.grad(result, x)[0])
    assert stats().compilations == 0


def test_inputs_that_are_written_and_results_that_share_memory() -> None:
    def fn(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x.add_(1)
        y = x * 2
        return y, y.view(-1)

    for _ in range(2):
        x = torch.zeros(2, 2)
        (y, flat), found = again(fn, x)
        assert x.eq(1).all()
        y[0, 0] = 7
        assert flat[0] == 7
    assert is_warm(found)


def test_symbolic_sizes() -> None:
    def sizes() -> Stats:
        torch.compiler.reset()
        reset_stats()
        compiled = torch.compile(lambda x: x * x.shape[0], backend="torchtpu_dynamo", dynamic=True)
        for n in (3, 4, 5):
            torch.testing.assert_close(compiled(torch.ones(n)), torch.full((n,), float(n)))
        return stats()

    assert sizes().compilations == 3
    found = sizes()
    assert (found.compilations, found.cache.hits) == (0, 3)


def test_a_constant_of_the_graph_is_never_mistaken() -> None:
    """Values that a module owns outside of its parameters are unknown to torch's key."""
    for value in (1.0, 2.0):
        owned = torch.full((3,), value)
        result, _ = again(lambda x: x + owned.numpy(), torch.zeros(3))  # noqa: B023
        assert result.eq(value).all()


@torch.library.custom_op("torchtpu_tests::unknown_to_the_cache", mutates_args=())
def unknown(x: torch.Tensor) -> torch.Tensor:
    return x.clone()


@unknown.register_fake
def _(x: torch.Tensor) -> torch.Tensor:
    return torch.empty_like(x)


def test_a_graph_that_does_not_compile_raises_every_time() -> None:
    for _ in range(2):
        with pytest.raises(TorchTPUError, match="has no lowering"):
            again(lambda x: unknown(x) + 1, torch.ones(2, 2))
        assert stats().cache.stored == 0


def test_a_backward_is_compiled_when_it_runs() -> None:
    result, found = again(lambda x: x.sin(), torch.ones(3, requires_grad=True))
    assert found.compilations == 1
    result.sum().backward()
    assert stats().compilations == 2


@pytest.mark.parametrize("how", ["option", "variable", "torch", "dump"])
def test_off(how: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {}
    switch: contextlib.AbstractContextManager[Any] = contextlib.nullcontext()
    if how == "option":
        options["cache"] = False
    elif how == "variable":
        monkeypatch.setenv("TORCHTPU_CACHE", "0")
    elif how == "dump":
        monkeypatch.setenv("TORCHTPU_DUMP", str(folder / "dump"))
    else:
        switch = torch.compiler.config.patch(force_disable_caches=True)
    with switch:
        for _ in range(2):
            assert again(affine, torch.ones(2, 2), torch.ones(2, 2), **options)[1].compilations == 1
    assert not files(folder)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def warned_once(work: Callable[[], Any], match: str = "") -> Any:
    """The result of `work`, which must give one warning about the cache."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = work()
    (said,) = [str(w.message) for w in caught if "torchtpu cache" in str(w.message)]
    assert match in said
    return result


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "flipped": flip,
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "garbage": lambda path: path.write_bytes(b"torchtpu" + bytes(1000)),
    "another version": lambda path: path.write_bytes(
        path.read_bytes()[:8] + b"\x63\0\0\0" + path.read_bytes()[12:]
    ),
    "folder": replace_by_folder,
    "pipe": replace_by_pipe,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_compiled_again_with_one_warning(damage: str, folder: Path) -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    again(affine, x, w)
    for path in files(folder):
        DAMAGES[damage](path)
    result, found = warned_once(lambda: again(affine, x, w))
    assert (found.compilations, found.cache.hits) == (1, 0)
    assert found.cache.errors >= 1
    torch.testing.assert_close(result, affine(x, w))
    if damage != "folder":  # which stays in the way
        assert again(affine, x, w)[1].cache.hits == 1


@pytest.mark.parametrize("damage", ["truncated", "empty", "flipped", "garbage"])
def test_damage_to_torchs_own_files_is_survived(damage: str, tmp_path: Path) -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    again(affine, x, w)
    damaged = [p for p in (tmp_path / "torch").rglob("*") if p.is_file() and "aotautograd" in str(p)]
    assert damaged or aot_cache() is None or not aot_cache()._supported()
    if damage == "flipped":  # torch checks nothing: in what no longer is a pickle
        damaged = [p for p in damaged if p.write_bytes(b"\xff" + p.read_bytes()[1:])]
    for path in damaged:
        DAMAGES[damage](path)
    result, found = again(affine, x, w)
    assert found.compilations == 0
    torch.testing.assert_close(result, affine(x, w))


@pytest.mark.parametrize("where", ["/dev/null/cache", "/proc/cache", "shared"])
def test_a_folder_that_cannot_be_used_is_done_without(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    why = "others may write" if where == "shared" else "cannot make"
    if where == "shared":
        where = str(tmp_path / where)
        os.mkdir(where)
        os.chmod(where, 0o777)
    monkeypatch.setenv("TORCHTPU_CACHE_DIR", where)
    cache._open.cache_clear()

    def twice() -> None:
        for _ in range(2):
            result, found = again(affine, torch.ones(2, 2), torch.ones(2, 2))
            assert found.compilations == 1
            assert result.eq(3).all()

    warned_once(twice, why)


@contextlib.contextmanager
def mounted(path: Path, options: str) -> Iterator[None]:
    path.mkdir(mode=0o700)
    command = ["mount", "-t", "tmpfs", "-o", f"mode=0700,{options}", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root; the store's own tests fail writes by a limit of the file size")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_full_or_read_only_disk(fault: str, folder: Path) -> None:
    x, w = torch.randn(3, 4), torch.randn(4, 5)
    with mounted(folder, "size=4k" if fault == "full" else "size=4m"):
        if fault == "read-only":
            again(affine, x, w)
            subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
            assert again(affine, x, w)[1].cache.hits == 1  # reading goes on

        def twice() -> None:
            for _ in range(2):
                result, found = again(lambda x, w: affine(x, w) * 2, x, w)
                assert (found.compilations, found.cache.stored) == (1, 0)
                torch.testing.assert_close(result, affine(x, w) * 2)

        warned_once(twice, "cannot write")
        assert not list(folder.glob(".tmp-*"))


def test_a_folder_that_vanishes(folder: Path) -> None:
    x = torch.ones(2, 2)
    again(affine, x, x)
    for path in files(folder):
        path.unlink()
    folder.rmdir()
    with pytest.warns(UserWarning, match="cannot write"):
        result, found = again(affine, x, x)
    assert found.compilations == 1
    assert result.eq(3).all()


def test_nothing_is_said_when_all_is_well() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again(affine, torch.ones(2, 2), torch.ones(2, 2))
        assert is_warm(again(affine, torch.ones(2, 2), torch.ones(2, 2))[1])


def test_the_limit(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.ones(2, 2)
    again(affine, x, x)
    size = files(folder)[0].stat().st_size
    monkeypatch.setenv("TORCHTPU_CACHE_SIZE", str(int(size * 1.5)))
    again(lambda x, w: affine(x, w) + x, x, x)
    assert len(files(folder)) == 1


@pytest.mark.parametrize(
    ("text", "size"),
    [("", 4 << 30), ("0", 0), ("123", 123), ("2k", 2048), ("500M", 500 << 20), ("1.5 GiB", 3 << 29)],
)
def test_size(text: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTPU_CACHE_SIZE", text)
    assert cache.size() == size


def test_a_size_that_is_none_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHTPU_CACHE_SIZE", "much")
    with pytest.warns(UserWarning, match="TORCHTPU_CACHE_SIZE=much"):
        assert cache.size() == cache.DEFAULT_SIZE


def command(*args: str) -> subprocess.CompletedProcess[str]:
    """The command line, which must not load torch."""
    script = (
        "import sys; from torchtpu_dynamo.cli import main; status = main(sys.argv[1:]);"
        "assert 'torch' not in sys.modules; sys.exit(status)"
    )
    return subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True)


def test_the_command_line(folder: Path) -> None:
    assert "nothing there" in command("cache", "ls").stdout
    again(affine, torch.ones(2, 2), torch.ones(2, 2))
    listed = command("cache", "ls")
    assert listed.returncode == 0
    assert "inference" in listed.stdout
    assert "1 executables" in listed.stdout
    assert files(folder)[0].name[:12] in listed.stdout
    checked = command("cache", "verify")
    assert (checked.returncode, "1 files checked, 0 damaged" in checked.stdout) == (0, True)
    flip(files(folder)[0])
    checked = command("cache", "verify")
    assert (checked.returncode, "its checksum is wrong" in checked.stdout) == (1, True)
    assert "removed 1 files" in command("cache", "clear").stdout
    assert not files(folder)
    assert command("cache", "ls", "--dir", "/dev/null").returncode == 1
    assert command("nothing").returncode == 2

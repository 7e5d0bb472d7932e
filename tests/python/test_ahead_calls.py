"""What a call of an artifact takes, gives and keeps: arguments that share memory, containers, defaults, state."""

from __future__ import annotations

import collections
import copy
import dataclasses
import enum
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from torchtpu_dynamo import TorchTPUError, aot_compile


def weighed(a, others, *, k):
    return a + others["b"][0] * 10 + k * 100


def test_one_tensor_for_several_arguments():
    """Each is an argument of its own, whatever was passed when it was compiled."""
    x, a, b, k = torch.ones(3), torch.randn(3), torch.randn(3), torch.randn(3)
    compiled = aot_compile(weighed, (x, {"b": [x]}), {"k": x[:]})
    assert [spec["name"] for spec in compiled.label["inputs"]] == ["a", "others.b.0", "k"]
    assert_close(compiled(a, {"b": [b]}, k=k), a + b * 10 + k * 100)
    assert_close(compiled(a, {"b": [a]}, k=a), a * 111)


def test_an_argument_that_is_also_a_weight():
    module, x = nn.Bilinear(3, 3, 2), torch.randn(4, 3)
    weight = nn.Parameter(torch.randn(4, 3))
    module.register_parameter("other", weight)
    module.forward = lambda given: given * 2 + module.other
    assert_close(aot_compile(module, (weight,))(x), x * 2 + weight.detach())
    closed_over = torch.randn(3)
    assert_close(aot_compile(lambda x: x * 2 + closed_over, (closed_over,))(x[0]), x[0] * 2 + closed_over)
    with torch.device("meta"):
        same = torch.empty(3)
    assert_close(aot_compile(lambda a, b: a - b, (same, same))(x[0], x[1]), x[0] - x[1])


def writes(a, b):
    a.add_(1)
    return a * 2 + b


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.ones(3))

    def forward(self, x):
        self.count.add_(1)
        return x * self.count


def test_memory_that_is_shared_and_written():
    x, module = torch.zeros(6), Counted()
    for args in ((x, x), (x, x[:]), (x[:4], x[2:])):
        with pytest.raises(TorchTPUError, match="`b` shares memory with `a`, and one of them is changed"):
            aot_compile(writes, args)
    with pytest.raises(TorchTPUError, match="`x` shares memory with `count`, and one of them is changed"):
        aot_compile(module, (module.count,))
    rows = torch.zeros(3, 2)
    compiled = aot_compile(writes, (rows[:, 0], rows[:, 1]))
    assert_close(compiled(rows[:, 0], rows[:, 1]), torch.full((3,), 2.0))
    assert_close(rows, torch.tensor([[1.0, 0.0]] * 3))
    array = np.zeros(3, np.float32)
    for y in (x[:3], array, torch.from_numpy(array)):
        with pytest.raises(TypeError, match="input `a` is changed in place, and input `b` shares its memory"):
            compiled(y, y[:])
    compiled(torch.from_numpy(array), torch.from_numpy(array.copy()))
    same = torch.ones(3)
    assert_close(aot_compile(lambda a, b: a + b, (rows[:, 0], rows[:, 1]))(same, same), same * 2)


class State(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("kept", torch.ones(3))
        self.register_buffer("cache", None)
        self.plain, self.calls, self.log, self.table = torch.ones(3), 0, [], {}
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, how):
        old = self.kept
        if how == "buffer":
            self.kept = self.kept * 2
            return old + x, self.kept, old
        if how == "attribute":
            self.plain = self.plain + x
            return self.plain, self.plain * 2
        if how == "argument":
            self.kept = x
            return old * 1, x + 1
        if how == "swap":
            self.kept, self.plain = self.plain * 3, self.kept
            return self.kept * x, self.plain * x
        if how == "cached":
            if self.cache is None:
                self.cache = x * 2
            self.table["x"] = self.new = x * 3
            return self.cache + x, x
        if how == "shape":
            self.kept = torch.zeros(2) + x[0]
        elif how == "type":
            self.kept = None
        elif how == "parameter":
            self.weight = None
        elif how == "number":
            self.calls += 1
        elif how == "tensor":
            self.calls = x.sum()
        elif how == "list":
            self.log.append(x + 1)
        return x * 2, x


class Inside(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = State()

    def forward(self, x, how):
        return self.inner(x, how)


def attributes(module: nn.Module) -> list[Any]:
    """Which objects a module holds."""
    held = [held for m in module.modules() for held in (vars(m), m._buffers, m._parameters)]
    return [[(name, id(value), str(value)) for name, value in each.items()] for each in held]


@pytest.mark.parametrize("how", ["buffer", "attribute", "argument", "swap", "cached"])
@pytest.mark.parametrize("make", [State, Inside, lambda: State().forward])
def test_state_that_is_bound_anew(make, how):
    """As if it were written in place; and the module is what it was."""
    fn = make()
    module = getattr(fn, "__self__", fn)
    eager, before = copy.deepcopy(module), attributes(module)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        compiled = aot_compile(fn, (torch.ones(3), how))
    assert attributes(module) == before
    if how == "cached":
        assert_close(compiled(torch.zeros(3), how), (torch.zeros(3), torch.zeros(3)))
        return
    for _ in range(3):
        x = torch.randn(3)
        assert_close(compiled(x, how), eager(x, how))


def test_state_that_an_artifact_cannot_keep():
    x = torch.ones(3)
    for how, message in {
        "shape": r"buffer `inner.kept` is float32\[3\], and a call binds float32\[2\] to it.*\n"
        r"help: write it in place: self.kept.copy_",
        "type": r"buffer `inner.kept` is float32\[3\], and a call binds None to it",
        "parameter": r"parameter `inner.weight` is float32\[3\], and a call binds None to it",
    }.items():
        with pytest.raises(TorchTPUError, match=message):
            aot_compile(Inside(), (x, how))
    log, given, table = [], [], {}

    def fills(x, given, table):
        given.append(x + 1)
        table["x"] = x + 2
        return x * 2

    with pytest.warns(UserWarning, match=r"a call changes what `args\[1\]` holds, a list") as found:
        aot_compile(fills, (x, given), {"table": table})
    assert any("what `kwargs['table']` holds, a dict" in str(w.message) for w in found)
    assert (given, table) == ([], {})

    def appends(x):
        log.append(x + 1)
        return x * 2

    for fn, args, message in (
        (State(), (x, "number"), "a call changes `calls`, from 0 to 1, and an artifact's calls do not"),
        (State(), (x, "tensor"), r"a call changes `calls`, from 0 to float32\[\]"),
        (Inside(), (x, "list"), "a call changes what `inner.log` holds, a list"),
        (appends, (x,), "a call changes what `log` holds, a list"),
    ):
        with pytest.warns(UserWarning, match=message):
            aot_compile(fn, args)
    assert log == []


NUMBER, TENSOR, LISTED = 0, torch.ones(3), [1]


class Globals(nn.Module):
    def forward(self, x):
        global NUMBER, TENSOR
        NUMBER, TENSOR = NUMBER + 1, TENSOR * 2
        LISTED[0] = NUMBER + 5
        return x * TENSOR


def test_variables_that_are_bound_anew():
    """They are what they were, and the user hears of it."""
    number = 0
    tensor = TENSOR

    def counts(x):
        nonlocal number
        number += 1
        return x * number

    x = torch.ones(3)
    with pytest.warns(UserWarning, match="a call changes `number`, from 0 to 1"):
        aot_compile(counts, (x,))
    with pytest.warns(UserWarning, match="TENSOR") as found:
        assert_close(aot_compile(Globals(), (x,))(x), x * 2)
    messages = "\n".join(str(w.message) for w in found)
    assert "a call changes `NUMBER`, from 0 to 1" in messages
    assert "a call changes `TENSOR`, from float32[3] to float32[3]" in messages
    assert "a call changes what `LISTED` holds, a list" in messages
    assert (number, NUMBER, LISTED) == (0, 0, [1]) and TENSOR is tensor


def test_two_modules_of_one_class():
    first, second, x = State(), State(), torch.ones(3)
    compiled = aot_compile(lambda x: first(x, "buffer")[1] + second(x, "argument")[0], (x,))
    assert torch.equal(first.kept, x) and torch.equal(second.kept, x)
    for wanted in (3.0, 5.0, 9.0):
        assert_close(compiled(x), torch.full((3,), wanted))
    with (
        pytest.warns(UserWarning, match=r"`State.calls`, from 0 to 1"),
        pytest.warns(match=r"`State \(2\).calls`"),
    ):
        aot_compile(lambda x: first(x, "number")[0] + second(x, "number")[0], (x,))
    assert first.calls == second.calls == 0


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        one = torch.ones(3)
        self.register_buffer("a", one)
        self.register_buffer("b", one)

    def forward(self, x):
        self.a = self.a * 2
        return x * self.a, x * self.b


def test_one_buffer_under_two_names():
    with pytest.raises(
        TorchTPUError, match=r"buffer `a` is float32\[3\], is another attribute too, and a call binds"
    ):
        aot_compile(Twice(), (torch.ones(3),))


class Untouched(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.ones(3))
        self.weight = nn.Parameter(torch.ones(3))

    def forward(self, x, both: bool):
        self.count.add_(1)
        y = x * self.count
        return (y, self.weight, self.count) if both else (y, self.count)


def test_a_weight_as_a_result():
    module, x = Untouched(), torch.ones(3)
    compiled = aot_compile(module, (x, False))
    for _ in range(2):
        assert_close(compiled(x, False), module(x, False))
    with pytest.raises(
        TorchTPUError, match="a result is the weight `weight`, which the program does not read"
    ):
        aot_compile(module, (x, True))


@pytest.mark.parametrize("train", [True, False])
def test_parametrized_modules(train):
    x = torch.randn(3)
    normed = parametrizations.weight_norm(nn.Linear(3, 4))
    assert_close(aot_compile(normed, (x,))(x), normed(x).detach())
    spectral = parametrizations.spectral_norm(nn.Linear(3, 4)).train(train)
    compiled = aot_compile(spectral, (x,))
    for _ in range(2):
        assert_close(compiled(x), spectral(x).detach())
    with pytest.raises(
        TorchTPUError, match=r"TopLevelTracedModule is of torch.jit, which dynamo does not trace"
    ):
        aot_compile(torch.jit.trace(nn.Linear(3, 4), (x,)), (x,))


@dataclasses.dataclass(frozen=True)
class Batch:
    x: torch.Tensor
    scale: float = 2.0
    more: Any = None


def test_containers():
    x, y = torch.ones(2), torch.randn(2)

    def fn(batch, ordered):
        lists = collections.defaultdict(list)
        lists["a"].append(batch.x * batch.scale)
        lists["b"] = collections.deque([ordered["o"] - batch.more["k"]])
        pair = collections.OrderedDict([("z", Batch(batch.x + 1)), ("a", batch.x.max(0))])
        return lists, pair

    compiled = aot_compile(fn, (Batch(x, 3.0, {"k": x}), collections.OrderedDict(o=x)))
    assert [spec["name"] for spec in compiled.label["inputs"]] == ["batch.x", "batch.more.k", "ordered.o"]
    wanted = (
        {"a": [y * 3], "b": [y * 0]},
        {"z": {"x": y + 1, "scale": 2.0, "more": None}, "a": (y.max(), y.argmax())},
    )
    for batch in (Batch(y, 3.0, {"k": y}), {"x": y, "scale": 3.0, "more": {"k": y}}):
        found = compiled(batch, {"o": y})
        assert_close(found[0], wanted[0])
        assert list(found[1]) == ["z", "a"]
        assert_close(found[1]["z"]["x"], wanted[1]["z"]["x"])
        assert_close(found[1]["a"], wanted[1]["a"])
    with pytest.raises(TypeError, match=r"`batch.scale` was 3.0 when this was compiled, and is 2.0"):
        compiled(Batch(y, 2.0, {"k": y}), {"o": y})


class Colour(enum.Enum):
    RED = 1


class Bag:
    def __init__(self, x):
        self.x = x


def test_containers_that_an_artifact_cannot_keep():
    x = torch.ones(2)
    for key in ((1, 2), Colour.RED):
        with pytest.raises(
            TorchTPUError, match=r"`d.in` has the key .*, a (tuple|Colour), which an artifact"
        ):
            aot_compile(lambda d: next(iter(d["in"].values())) + 1, ({"in": {key: x}},))
        with pytest.raises(TorchTPUError, match=r"`the result` has the key"):
            aot_compile(lambda x, key=key: {key: x + 1}, (x,))
    torch.utils._pytree.register_pytree_node(Bag, lambda b: ([b.x], None), lambda parts, _: Bag(parts[0]))
    try:
        with pytest.raises(
            TorchTPUError, match="an argument or result is a Bag, which an artifact cannot keep"
        ):
            aot_compile(lambda bag: bag.x + 1, (Bag(x),))
    finally:
        torch.utils._pytree._deregister_pytree_node(Bag)


@pytest.mark.parametrize("number", [float("inf"), -float("inf"), float("nan"), 1.5])
def test_numbers_that_json_has_not(number):
    x = torch.tensor([1.0, float("nan")])
    compiled = aot_compile(lambda x, fill: (torch.nan_to_num(x, fill), fill), (x, number))
    assert_close(compiled(x, number), (torch.nan_to_num(x, number), number), equal_nan=True)
    with pytest.raises(TypeError, match="`fill` was .* when this was compiled, and is 2.5"):
        compiled(x, 2.5)


def scaled(x, mask=None, scale=2.0, *, how="sum"):
    return x * scale if mask is None else x * mask


def test_defaults_may_be_passed():
    x, scale = torch.randn(3), torch.randn(3)
    compiled = aot_compile(scaled, (x,))
    for args, kwargs in (
        ((), {}),
        ((None,), {}),
        ((None, 2.0), {"how": "sum"}),
        ((), {"mask": None, "scale": 2.0}),
    ):
        assert_close(compiled(x, *args, **kwargs), x * 2)
    for args, kwargs, message in (
        ((x,), {}, "`mask` was None when this was compiled"),
        ((), {"scale": 3.0}, "`scale` was 2.0 when this was compiled, and is 3.0"),
        ((None, 2.0, "sum"), {}, r"the artifact takes \(x\)"),
        ((None,), {"mask": None}, r"the artifact takes \(x\)"),
        ((), {"other": None}, r"the artifact takes \(x\)"),
    ):
        with pytest.raises(TypeError, match=message):
            compiled(x, *args, **kwargs)
    assert_close(aot_compile(scaled, (x,), {"scale": scale})(x, None, scale), x * scale)


def test_arrays_of_the_other_byte_order():
    compiled = aot_compile(writes, (torch.ones(3), torch.ones(3)))
    for order in "<>":
        a = np.arange(3, dtype=f"{order}f4")
        found = compiled(a, np.ones(3, f"{order}f4"))
        np.testing.assert_equal(found, np.array([3, 5, 7], np.float32))
        np.testing.assert_equal(a, np.array([1, 2, 3], np.float32))


def test_values_that_are_no_numbers_of_the_dtype():
    x, n = torch.tensor(2.0), torch.tensor(3)
    compiled = aot_compile(lambda x, n: x * n, (x, n))
    np.testing.assert_equal(compiled(np.float64(0.5), True), np.array(0.5, np.float32))
    for args, message in (
        (("2", 3), "input `x` is of the type str, and should be an array of float32"),
        ((None, 3), "input `x` was a tensor when this was compiled, and is None"),
        (([None], 3), "input `x` is of the type list, and should be an array of float32"),
        ((1j, 3), "input `x` is complex128, not float32"),
        ((2.0, 3.7), "input `n` is float64, not int64"),
        ((2.0, 2**63), "input `n` is uint64, not int64"),
        ((2.0, 2**70), "input `n` is of the type int, and should be an array of int64"),
    ):
        with pytest.raises(TypeError, match=message):
            compiled(*args)


def test_a_tensor_where_a_constant_was_is_not_printed():
    x = torch.randn(50, 50)
    with pytest.raises(
        TypeError, match=r"^`mask` was None when this was compiled, and is float32\[50, 50\]$"
    ):
        aot_compile(scaled, (x,))(x, x)

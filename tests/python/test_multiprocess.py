"""Several processes on TPUs: what libtpu is told, whose device is whose, and the program that ranks agree on.

No process here has a TPU. Clients say that they are one; libtpu compiles ahead of time for the slice, and the CPU runs the
program with the arguments of all ranks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tests.torchrun import RANKS, agree, torchrun
from torchtpu_dynamo._torchtpu import Program, Source

from torchtpu_dynamo import TorchTPUError, lower_spmd, plugins
from torchtpu_dynamo.ahead import topologies
from torchtpu_dynamo.distributed import multiprocess, ranks
from torchtpu_dynamo.distributed.multiprocess import Host, Place, assigned, environment

BOUNDS, TASK, CHIPS = "TPU_PROCESS_BOUNDS", "CLOUD_TPU_TASK_ID", "TPU_VISIBLE_CHIPS"


def place(local_rank, processes, chips=0, hosts=("localhost",), host=0, workers=None):
    workers = workers or [None] * len(hosts)
    found = [Host(address, processes, worker) for address, worker in zip(hosts, workers, strict=True)]
    return Place(found, host, local_rank, chips)


def test_one_host_of_four_chips():
    """v5e and v6e 2x2, v5p 2x2x1."""
    assert environment(place(2, 4, chips=4), {}) == {
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "CLOUD_TPU_TASK_ID": "2",
        "TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1",
        "TPU_PROCESS_ADDRESSES": "localhost:8476,localhost:8477,localhost:8478,localhost:8479",
        "TPU_PROCESS_BOUNDS": "2,2,1",
        "TPU_PROCESS_PORT": "8478",
        "TPU_VISIBLE_CHIPS": "2",
    }
    for topology in ("2x2", "2x2x1"):
        assert environment(place(0, 4), {"TPU_TOPOLOGY": topology})[BOUNDS] == "2,2,1"


def test_one_host_of_eight_chips():
    """v5e and v6e 2x4, or 4x2: the machine has to say."""
    for given, bounds in (
        ({"TPU_TOPOLOGY": "2x4"}, "2,4,1"),
        ({"TPU_TOPOLOGY": "4x2"}, "4,2,1"),
        ({"TPU_HOST_BOUNDS": "1,1,1", "TPU_CHIPS_PER_HOST_BOUNDS": "2,4,1"}, "2,4,1"),
    ):
        told = environment(place(7, 8, chips=8), given)
        assert (told[BOUNDS], told[TASK], told[CHIPS], told["TPU_PROCESS_PORT"]) == (bounds, "7", "7", "8483")
    with pytest.raises(
        TorchTPUError, match=r"how the 8 chips of 1 host lie is not known\nhelp: set TPU_TOPO"
    ):
        environment(place(0, 8, chips=8), {})


@pytest.mark.parametrize(("topology", "bounds"), [("2x4", "2,4,1"), ("2x2x2", "2,2,2")])
def test_two_hosts_of_four_chips(topology, bounds):
    """v5e 2x4, v5p 2x2x2. Tasks are counted as Cloud TPU counts the hosts, whoever came to torchrun first."""
    given = {"TPU_TOPOLOGY": topology}
    told = environment(place(1, 4, 4, ("a", "b"), host=1), given)
    assert (told[BOUNDS], told[TASK], told[CHIPS]) == (bounds, "5", "1")
    addresses = [f"{host}:{port}" for host in "ab" for port in range(8476, 8480)]
    assert told["TPU_PROCESS_ADDRESSES"] == ",".join(addresses)
    turned = environment(place(1, 4, 4, ("a", "b"), host=1, workers=[1, 0]), given)
    assert (turned[TASK], turned["TPU_PROCESS_ADDRESSES"]) == ("1", ",".join(addresses[4:] + addresses[:4]))
    slice_of_hosts = {"TPU_HOST_BOUNDS": "1,2,1", "TPU_CHIPS_PER_HOST_BOUNDS": "2,2,1"}
    assert environment(place(1, 4, 4, ("a", "b"), host=1), slice_of_hosts)[BOUNDS] == "2,4,1"
    with pytest.raises(TorchTPUError, match="how the 8 chips of 2 hosts lie is not known"):
        environment(place(0, 4, 4, ("a", "b")), {})


def test_one_process_a_host_is_left_to_libtpu():
    assert environment(place(0, 1, 4, ("a", "b"), host=1), {"TPU_TOPOLOGY": "2x4"}) == {}
    assert environment(place(0, 1, 1), {}) == {}


def test_what_the_user_sets_stays():
    given = {BOUNDS: "4,1,1", "TPU_PROCESS_PORT": "9000", CHIPS: "3"}
    told = environment(place(2, 4, chips=8), given)
    assert told.keys().isdisjoint(given) and told[TASK] == "2"


def test_other_numbers_of_processes_are_refused():
    with pytest.raises(
        TorchTPUError, match="this host has 4 chips and 2 processes\nhelp: .*--nproc-per-node 4"
    ):
        environment(place(0, 2, chips=4), {})
    with pytest.raises(TorchTPUError, match="the slice is 4x4x1 chips, and there are 4 processes"):
        environment(place(0, 4, chips=4), {"TPU_TOPOLOGY": "4x4"})
    with pytest.raises(TorchTPUError, match="hosts have different numbers of processes: 4, 2"):
        environment(Place([Host("a", 4), Host("b", 2)], 0, 0, 4), {"TPU_TOPOLOGY": "2x4"})
    with pytest.raises(TorchTPUError, match="'two' is no shape of a slice"):
        environment(place(0, 4), {"TPU_TOPOLOGY": "two"})


def test_each_rank_has_its_device():
    every = [0, 1, 2, 3]
    assert assigned([(0, [2], every), (1, [0], every), (3, [1], every), (2, [3], every)]) == [2, 0, 1, 3]
    for told, said in (
        ([(0, [0], [0, 1]), (1, [0], [0, 1])], "rank 0 and rank 1 both have device 0"),
        ([(0, every, every)], r"rank 0 \(process 0\) has devices 0-3, where one is a rank's"),
        ([(0, [0], every), (1, [3], every)], "the slice has devices 1, 2 besides those of ranks 0, 1"),
        ([(0, [0], [0, 1]), (1, [1], [1])], "rank 1 knows device 1, and rank 0 knows devices 0, 1"),
        ([(0, [0], [0, 1]), (1, [5], [0, 1])], "the slice has device 1 besides"),
        ([(0, [0], [0]), (1, [5], [0])], "rank 1 has device 5, which is not in the slice"),
    ):
        with pytest.raises(TorchTPUError, match=said):
            assigned(told)


def program(ranks=4):
    from torch.distributed import group
    from torch.distributed._functional_collectives import all_gather_tensor

    def build():
        world = group.WORLD
        return (lambda x: all_gather_tensor(x * 2, 0, world)), torch.ones(128, 128)

    return lower_spmd(build, ranks).programs["inference"]


def test_device_assignment_reaches_libtpu():
    prepared = program().for_tpu("v5e:2x2")

    def build(devices):
        return topologies.build(
            prepared.as_bytecode(), "v5e:2x2", name="x", options_json=prepared.options, replicas=4, devices=devices
        ).executable  # fmt: skip

    in_order = build(None)
    assert build([0, 1, 2, 3]) == in_order != build([0, 3, 1, 2])
    for devices in ([0, 1, 2, 4], [0, 0, 1, 2], [0, 1]):
        with pytest.raises(TorchTPUError, match="is for 4 of 4 devices, and its device assignment is"):
            build(devices)


def test_a_process_has_one_device_of_a_program():
    of_one = program(1)
    x = torch.randn(128, 128)
    [doubled] = of_one.compile_rank(plugins.client("cpu"), "", [0])([x], 0)
    torch.testing.assert_close(doubled, x * 2)
    with pytest.raises(TorchTPUError, match=r"of the devices \[0, 1, 2, 3\], 4 are this process's"):
        program().compile_rank(plugins.client("cpu", cpu_devices=4), "", [0, 1, 2, 3])
    with pytest.raises(TorchTPUError, match="is for 4 ranks, not 1"):
        program().compile_rank(plugins.client("cpu"), "", [0])


def test_equal_graphs_make_the_same_program_at_once():
    """One that all ranks share is lowered once, and gives what one of each rank gives."""
    payload = program().payload
    shared, own = [Source(payload)] * 4, [Source(payload) for _ in range(4)]
    assert Program.of_ranks(shared, "").as_text() == Program.of_ranks(own, "").as_text()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tune": 1}, "'tune' searches for one process"),
        ({"buckets": {"*": "pow2"}}, "a program for a range of sizes has collectives between processes"),
    ],
)
def test_options_for_one_process_are_refused(monkeypatch, options, said):
    monkeypatch.setattr(multiprocess, "joined", lambda _: True)
    monkeypatch.setattr(ranks, "has_collectives", lambda _: True)
    step = torch.compile(lambda x: x + 1, backend="tpu", dynamic=True, options=options)
    with pytest.raises(TorchTPUError, match=said):
        step(torch.ones(5))


def test_ranks_agree_on_a_program(tmp_path: Path):
    agree(tmp_path, ["configured", "pretended_program", "pretended_sizes", "pretended_fallback"])
    digests = [json.loads((tmp_path / f"digests.{rank}").read_text()) for rank in range(RANKS)]
    assert digests == digests[:1] * RANKS


def test_ranks_that_disagree_or_do_not_come(tmp_path: Path):
    cases = ["pretended_differing_rank", "pretended_differing_options", "pretended_missing_rank"]
    texts, output = torchrun(tmp_path, cases)
    missing = [(case, rank) for case, of in texts.items() for rank, text in enumerate(of) if not text]
    assert missing == [("pretended_missing_rank", 3)], output[-4000:]
    for text in texts["pretended_differing_rank"]:
        assert text.startswith(
            "rank 2 does something else here than rank 0: `sine : f32[4]` and `cosine : f32[4]`"
        )
        assert "tpu_ranks.py:" in text
    for rank, text in enumerate(texts["pretended_differing_options"]):
        other = 0 if rank == 1 else 1
        assert text.startswith(f"ranks disagree: rank {other} makes another program than rank {rank} of")
    for text in texts["pretended_missing_rank"][:3]:
        assert text.startswith(
            "rank 3 did not come to `compile(inference graph) over ranks 0-3` within 5 s\n  rank 3: "
        )

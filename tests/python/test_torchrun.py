"""Several processes: the examples, sharded parameters, and ranks that do not come.

One torchrun for what goes well and one for what does not: starting processes takes longer than most cases."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.torchrun import agree, torchrun

SHARDED = ("graph", "backward", "in_bfloat16", "checkpoint")
EXAMPLES = ("tensor_parallel", "fully_sharded", "data_parallel_ddp", "expert_parallel", "two_dimensional")


def test_agrees_with_one_process(tmp_path: Path) -> None:
    sharded = [f"fully_sharded_{case}" for case in SHARDED]
    agree(tmp_path, [*sharded, "torch_fully_shard", "every_collective", *EXAMPLES])


@pytest.mark.slow
def test_context_parallel(tmp_path: Path) -> None:
    agree(tmp_path, ["context_parallel"])


def test_ranks_that_disagree_or_leave(tmp_path: Path) -> None:
    cases = ["nested_collective", "differing_rank", "differing_splits", "missing_rank", "killed_rank"]
    texts, output = torchrun(tmp_path, cases)
    missing = [(case, rank) for case, of in texts.items() for rank, text in enumerate(of) if not text]
    assert missing == [("missing_rank", 3), ("killed_rank", 2)], output[-4000:]
    assert all("ranks.py:" in text for of in texts.values() for text in of if text), texts
    call = "`all_reduce(float32[4], sum) over ranks 0-3`"

    for text in texts["nested_collective"]:
        assert text.startswith(
            "`_c10d_functional.all_reduce.default` is in a graph that `invoke_subgraph` runs"
        )

    # Whoever comes second says so, and never sends: gloo would end the process.
    other = "`all_reduce(float32[6], sum) over ranks 0-3`"
    assert other in texts["differing_rank"][2]
    assert any(text.startswith("ranks disagree: rank ") for text in texts["differing_rank"])
    for rank in (0, 1, 3):
        assert "rank 2" in texts["differing_rank"][rank] and call in texts["differing_rank"][rank]

    disagreement = "ranks disagree: rank 2 sends 5 rows, and rank 3 expects 4 in `all_to_all_single`\n"
    assert texts["differing_splits"][3].startswith(disagreement), texts["differing_splits"]

    # The first rank that gives up breaks the connections of the others.
    late = f"rank 3 did not come to {call} within 5 s\n"
    assert any(text.startswith(late) and "collective_timeout" in text for text in texts["missing_rank"])
    for case, gone in (("missing_rank", 3), ("killed_rank", 2)):
        for text in filter(None, texts[case]):
            assert f"rank {gone}" in text.splitlines()[0] and call in text.splitlines()[0], text
            assert f"  rank {gone}: last at `all_reduce(" in text
            assert "  op:    _c10d_functional.all_reduce.default" in text

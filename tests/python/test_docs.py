"""The published table of ops is the compiler's."""

from scripts import ops_table


def test_ops_table_is_current() -> None:
    assert ops_table.PATH.read_text() == ops_table.text(), "run `python scripts/ops_table.py`"

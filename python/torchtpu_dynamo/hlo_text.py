"""StableHLO as text that two runs agree on, and what differs between two of them.

Nothing here may compile."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Sequence

_CONSTANT = re.compile(r'dense<"0x([0-9A-Fa-f]{65,})">')
_MODULE = re.compile(r"^module @\S+", re.MULTILINE)
_NUMBERS = re.compile(r"%\w+(?::\d+)?")
_OP = re.compile(r"(?:^|= |\s)\"?((?:stablehlo|chlo|func)\.[\w.]+|return\b|call\b)")
_USE = re.compile(r"\s*loc\((#loc\d*|unknown)\)\s*$")
_ALIAS = re.compile(r"^(#loc\d*) = loc\((.*)\)$", re.MULTILINE)
_FILE = re.compile(r'"([^"]+)":(\d+)')


def stable(text: str, name: str) -> str:
    """A program without what differs from run to run: dynamo's number of the graph; and with the bytes of large constants
    as their digest."""

    def digest(found: re.Match[str]) -> str:
        return f'dense<"blake2:{hashlib.blake2b(bytes.fromhex(found[1]), digest_size=16).hexdigest()}">'

    return _CONSTANT.sub(digest, _MODULE.sub(f"module @{name}", text, count=1))


@dataclasses.dataclass(frozen=True)
class Line:
    """A line of a program: as it is, without the numbers of its values, and the user's `file:line` where it has one."""

    text: str
    shape: str
    op: str
    at: str | None


def lines(text: str) -> list[Line]:
    aliases = dict(_ALIAS.findall(text))
    found = []
    for raw in text.splitlines():
        if not raw.strip() or raw.startswith("#loc"):
            continue
        use = _USE.search(raw)
        plain = re.sub(r"\s*loc\((?:#loc\d*|unknown)\)", "", raw)
        op = _OP.search(plain)
        at = _place(aliases.get(use[1], "")) if use else None
        found.append(Line(plain, _NUMBERS.sub("%", plain), op[1] if op else "", at))
    return found


def _place(location: str) -> str | None:
    """The user's innermost `file:line` of a location."""
    found = _FILE.search(location)
    return f"{found[1]}:{found[2]}" if found else None


def counts(text: str) -> Counter[str]:
    """How often each operation is there."""
    return Counter(line.op for line in lines(text) if line.op and line.op != "return")


def difference(old: str, new: str, context: int = 2) -> Iterator[str]:
    """What differs, with the lines around it. Values that only go by other numbers are equal. Where `new` has locations,
    changed lines end with the user's."""
    a, b = lines(old), lines(new)
    matcher = difflib.SequenceMatcher(None, [x.shape for x in a], [x.shape for x in b], autojunk=False)
    for group in matcher.get_grouped_opcodes(context):
        first, last = group[0], group[-1]
        yield f"@@ -{first[1] + 1},{last[2] - first[1]} +{first[3] + 1},{last[4] - first[3]} @@"
        for tag, a0, a1, b0, b1 in group:
            if tag == "equal":
                yield from (f"  {line.text}" for line in b[b0:b1])
                continue
            yield from (f"- {line.text}{_mark(line)}" for line in a[a0:a1])
            yield from (f"+ {line.text}{_mark(line)}" for line in b[b0:b1])


def _mark(line: Line) -> str:
    return f"  # {line.at}" if line.at else ""


def changed_lines(old: str, new: str) -> list[str]:
    """The user's lines behind what differs: of `new`, and of `old` where it has locations."""
    a, b = lines(old), lines(new)
    matcher = difflib.SequenceMatcher(None, [x.shape for x in a], [x.shape for x in b], autojunk=False)
    found: dict[str, None] = {}
    for tag, a0, a1, b0, b1 in matcher.get_opcodes():
        if tag == "equal":
            continue
        touched: Sequence[Line] = [*b[b0:b1], *a[a0:a1]]
        places = [line.at for line in touched if line.at]
        if not places:  # something is gone: the line that it stood before
            places = [line.at for line in b[b0:] if line.at][:1]
        found.update(dict.fromkeys(places))
    return list(found)


def count_changes(old: str, new: str) -> list[str]:
    """One line an operation whose number changed."""
    before, after = counts(old), counts(new)
    return [f"{op}: {before[op]} -> {after[op]}" for op in sorted(before | after) if before[op] != after[op]]

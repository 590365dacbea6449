"""Host lists as schedulers write them: `gpu[001-004,007],login1` means six hosts. Bounded: a list is input like any."""

from __future__ import annotations

import re

HOSTS_MAX = 20_000  # of one list
_PART = re.compile(r"[^\[\],]*(?:\[[^\[\]]*\][^\[\],]*)*")
_BRACKET = re.compile(r"\[([^\[\]]*)\]")
_RANGE = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")


def expand(text: str, *, most: int = HOSTS_MAX) -> tuple[str, ...]:
    """The hosts of `text` in order; ValueError for what is no host list or has more than `most` hosts."""
    hosts: list[str] = []
    position = 0
    text = text.strip()
    while position < len(text):
        match = _PART.match(text, position)
        if match is None or not match.group() or (match.end() < len(text) and text[match.end()] != ","):
            raise ValueError(f"host list {text[:80]!r}: cannot be read at character {position + 1}")
        hosts.extend(_hosts(match.group(), room=most - len(hosts)))
        position = match.end() + 1
    return tuple(hosts)


def _hosts(part: str, *, room: int) -> list[str]:
    found = [""]
    position = 0
    for bracket in _BRACKET.finditer(part):
        head = part[position : bracket.start()]
        numbers = _numbers(bracket.group(1), room=room)
        if len(found) * len(numbers) > room:
            raise ValueError("host list: too many hosts")
        found = [f"{name}{head}{number}" for name in found for number in numbers]
        position = bracket.end()
    if len(found) > room:
        raise ValueError("host list: too many hosts")
    return [name + part[position:] for name in found]


def _numbers(inside: str, *, room: int) -> list[str]:
    numbers: list[str] = []
    for item in inside.split(","):
        match = _RANGE.fullmatch(item.strip())
        if match is None:
            raise ValueError(f"host list: {item[:40]!r} is not a number or a range")
        first, last = match.group(1), match.group(2) or match.group(1)
        if not 0 <= int(last) - int(first) < room - len(numbers):
            raise ValueError(f"host list: the range {item[:40]!r} is empty or too long")
        numbers.extend(str(n).zfill(len(first)) for n in range(int(first), int(last) + 1))
    return numbers

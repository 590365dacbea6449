"""Which class a scheduler's job belongs to, by the rules of the site file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

from controller.settings import JobRule


def class_by_rules(rules: Sequence[JobRule], attributes: Mapping[str, str]) -> str:
    """The class of the first rule whose patterns all match; empty where none does."""
    for rule in rules:
        if all(fnmatchcase(attributes.get(key, ""), pattern) for key, pattern in rule.matches):
            return rule.class_id
    return ""

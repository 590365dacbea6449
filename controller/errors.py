"""Errors meant for a person; everything else is a programming error."""

from __future__ import annotations


class BadInput(Exception):
    """Wrong input from a person: says the file, the key, the value and what is allowed. The CLI exits with 2."""


class CheckFailed(Exception):
    """A check ran and its answer is no (a limit broken, a proof missing). The CLI exits with 1."""

"""The AsyncAPI document: written out as generated, complete, and every reference in it resolves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from drivers.asyncapi import document, text
from drivers.dsx_wire import KINDS

ROOT = Path(__file__).resolve().parent.parent


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [r for v in node.values() for r in references(v)]
    return [r for v in node for r in references(v)] if isinstance(node, list) else []


def test_document_is_the_generated_one() -> None:
    """A change of a wire model without writing the document again fails here."""
    assert (ROOT / "docs" / "asyncapi.yaml").read_text(encoding="utf-8") == text(), "run: python -m drivers.asyncapi"


def test_every_reference_resolves_and_every_message_is_there() -> None:
    """Nothing points nowhere; each message has a channel, an operation and, if signed, its payload."""
    whole = yaml.safe_load(text())
    for ref in references(whole):
        node = whole
        for step in ref.removeprefix("#/").split("/"):
            node = node[step]
    assert set(whole["channels"]) == set(whole["operations"]) == set(whole["components"]["messages"])
    named = {m["name"] for m in whole["components"]["messages"].values() if "x-signed-payload" in m}
    assert named == set(KINDS)
    assert whole["asyncapi"].startswith("3.") and {"title", "version"} <= set(whole["info"])
    assert all(c["address"].count("{") == len(c["parameters"]) == 1 for c in whole["channels"].values())
    assert document() == whole

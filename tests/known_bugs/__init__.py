"""Bugs of earlier programs, until the last of them is an ordinary test elsewhere."""

from pathlib import Path

import pytest

TOPICS = tuple(
    name
    for name in ("networks", "data", "training")
    if Path(__file__).with_name(f"{name}.py").exists()
)
"""The modules with checks, by what they are about."""

pytest.register_assert_rewrite(*(f"tests.known_bugs.{topic}" for topic in TOPICS))

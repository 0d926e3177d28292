"""Bugs of earlier programs, one by one: that ours has none of them, and that we would notice."""

import pytest

TOPICS = ("networks", "data", "training", "runs", "program")
"""The modules with checks, by what they are about."""

pytest.register_assert_rewrite(*(f"tests.known_bugs.{topic}" for topic in TOPICS))

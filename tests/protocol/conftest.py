"""Hypothesis without a deadline: the machines that run these tests are shared and slow."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("unit", deadline=None)
settings.load_profile("unit")

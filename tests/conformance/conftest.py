"""Marks that LangChain's suites use."""

from __future__ import annotations

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Makes them known: unknown marks are errors here."""
    config.addinivalue_line("markers", "vcr: plays recorded HTTP back; LangChain's suites mark some tests with it")
    config.addinivalue_line("markers", "benchmark: times its body")

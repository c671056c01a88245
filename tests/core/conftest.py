"""Settings for the tests of the core."""

import pytest
from one_thread import one_thread as one_thread

# Marks of Transformers' own suites (tests/upstream.py).
UPSTREAM_MARKS = (
    "accelerate_tests",
    "all_flash_attn_test",
    "bitsandbytes",
    "flash_attn_test",
    "flash_attn_3_test",
    "flash_attn_4_test",
    "generate",
    "torch_compile_test",
    "torch_export_test",
)


def pytest_configure(config: pytest.Config) -> None:
    for mark in UPSTREAM_MARKS:
        config.addinivalue_line("markers", f"{mark}: of Transformers' own suites")

"""Settings that every test shares."""

import os

import pytest
from hypothesis import settings

# Tests state no timing: a busy machine must not turn a true property into a failure.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    """Triton decides when it is first imported whether it interprets kernels: it does in runs that need no GPU."""
    if "not gpu" in config.option.markexpr:
        os.environ["TRITON_INTERPRET"] = "1"

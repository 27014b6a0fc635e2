"""Settings that every test shares."""

import os

import pytest
from hypothesis import settings

# Tests state no timing: a busy machine must not turn a true property into a failure. Examples are the same in every
# run, so that a change is judged by what it does; `make test-random` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("random", deadline=None, print_blob=True)
settings.load_profile("same")


def pytest_configure(config: pytest.Config) -> None:
    """Triton decides when it is first imported whether it interprets kernels: it does in runs that need no GPU."""
    if "not gpu" in config.option.markexpr:
        os.environ["TRITON_INTERPRET"] = "1"

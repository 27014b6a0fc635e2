"""Uninitialised memory is poisoned with NaN in the op tests: an element that a kernel forgets to write shows."""

from collections.abc import Iterator

import pytest
import torch
import torch._decomp.decompositions_for_jvp  # it reads the source of torch's functions: before any is patched

# torch lists its constructors when a device context is first entered: let that be before any is patched
with torch.device("meta"):
    torch.empty(0)


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for owner, name in ((torch, "empty"), (torch, "empty_like"), (torch.Tensor, "new_empty")):
        monkeypatch.setattr(owner, name, _poison(getattr(owner, name)))
    return


def _poison(make):  # type: ignore[no-untyped-def]
    def poisoned(*args, **kwargs):  # type: ignore[no-untyped-def]
        tensor = make(*args, **kwargs)
        if tensor.is_floating_point() and tensor.device.type != "meta":
            tensor.fill_(float("nan"))
        return tensor

    return poisoned

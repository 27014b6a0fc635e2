import pytest
import torch

from mambabyte.training.precision import choose_device, choose_dtype

CPU = torch.device("cpu")


def test_what_is_asked_for_is_taken() -> None:
    assert choose_dtype("float32", CPU) == (torch.float32, "as asked")
    assert choose_dtype("bfloat16", CPU) == (torch.bfloat16, "as asked")


def test_auto_says_why() -> None:
    dtype, why = choose_dtype("auto", CPU)
    assert (dtype == torch.float32) == ("no AMX" in why)


def test_devices_by_name() -> None:
    assert choose_device("cpu") == CPU
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("name", ["gpu", "tpu:0", "meta", "", "cuda:99"])
def test_a_device_that_is_not_here_is_a_sentence(name: str) -> None:
    with pytest.raises(ValueError, match="device '"):
        choose_device(name)

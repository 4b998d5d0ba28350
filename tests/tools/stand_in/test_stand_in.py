"""The stand-in device does what a GPU would: refuses, waits, holds memory, casts; and its values are the CPU's."""

from __future__ import annotations

from tests.tools.stand_in.play import play


def test_it_refuses_what_cuda_refuses() -> None:
    mixed, chosen, array, drawn = play("refuses")
    assert mixed.startswith(same := "RuntimeError: Expected all tensors to be on the same device")
    assert chosen.startswith(same)
    assert array.startswith("TypeError: can't convert gpu:0 device type tensor to numpy")
    assert drawn.startswith("RuntimeError: Expected a 'gpu' device type for generator")


def test_it_notes_what_the_host_waits_for() -> None:
    assert play("waits") == {
        "item": ["_local_scalar_dense"],
        "list": ["copy to the device"],
        "mask": ["mask as an index"],
        "nonzero": ["nonzero"],
        "to the device": ["copy to the device"],
        "from the device": ["copy from the device"],
        "event": ["event"],
        "slice": [],
        "pinned": [],
        "pageable": ["to the device"],
    }


def test_memory_is_that_of_the_tensors_that_are_left() -> None:
    assert play("memory") == {
        "two": 8000,
        "a view is left": 4000,
        "none": 0,
        "capacity": 0,
        "enough": 1,
        "second": 0,
    }


def test_autocast_has_cudas_lists() -> None:
    assert play("autocast") == {
        "convolution": "torch.bfloat16",
        "norm": "torch.float32",
        "silu": "torch.bfloat16",
        "sum": "torch.float32",
        "exp": "torch.float32",
    }


def test_values_and_gradients_are_those_of_the_cpu() -> None:
    """Within float32: attention has another kernel, which sums in another order."""
    differences = play("gradients")
    assert len(differences) > 60 and max(differences.values()) < 1e-5


def test_a_conjugate_is_one() -> None:
    assert play("conjugates") == 0

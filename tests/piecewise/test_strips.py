import weakref

import pytest
import torch

from ldm_vae.piecewise.spill import HostMemory, SpilledStrips
from ldm_vae.piecewise.strips import Strips, Whole, cuts

pytestmark = pytest.mark.numerical


@pytest.mark.parametrize(("rows", "strips"), [(1, 1), (7, 3), (3, 8), (64, 64), (100, 7)])
def test_cuts_cover_every_row_once(rows: int, strips: int) -> None:
    assert [row for first, end in cuts(rows, strips) for row in range(first, end)] == list(range(rows))
    sizes = {end - first for first, end in cuts(rows, strips)}
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("axis", [2, 3])
@pytest.mark.parametrize("spill", [False, True])
def test_rows_come_back_across_strips(axis: int, spill: bool) -> None:
    x = torch.randn(1, 2, 9, 9)
    strips = SpilledStrips(axis, HostMemory()) if spill else Strips(axis)
    for first, end in cuts(9, 4):
        strips.append(x.narrow(axis, first, end - first))
    for first in range(9):
        for end in range(first + 1, 10):
            assert torch.equal(strips.read(first, end), x.narrow(axis, first, end - first))


def test_whole_strip_is_given_without_a_copy_and_freed_on_release() -> None:
    strips, first, second = Strips(2), torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 2, 3)
    alive, place = weakref.ref(first), second.data_ptr()
    strips.append(first)
    strips.append(second)
    del first
    strips.release(1)  # row 1 lies in the first strip
    assert alive() is not None
    strips.release(3)
    assert alive() is None
    assert strips.read(2, 4).data_ptr() == place


@pytest.mark.parametrize("axis", [2, 3])
def test_whole_is_written_in_order_and_read_in_place(axis: int) -> None:
    x, result = torch.randn(1, 2, 6, 6), torch.empty(1, 2, 6, 6)
    whole = Whole(axis, result)
    for strip in x.split(4, dim=axis):
        whole.append(strip)
    assert torch.equal(result, x)
    assert whole.read(0, 6).data_ptr() == result.data_ptr()

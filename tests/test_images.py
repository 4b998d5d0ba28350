"""The helpers around images give bit by bit what torchvision and diffusers make of the same pictures."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from ldm_vae import UserError, from_numpy, from_pil, from_uint8, to_numpy, to_pil, to_uint8
from tests.conftest import picture

LEVELS = np.arange(256, dtype=np.uint8).reshape(16, 16, 1).repeat(3, axis=2)  # every level of 8 bits


@pytest.mark.parametrize("image", [Image.fromarray(LEVELS), picture(0)])
def test_pictures_become_what_torchvision_and_diffusers_make_of_them(image: Image.Image) -> None:
    transforms = pytest.importorskip("torchvision.transforms.functional")
    ours = from_pil(image)
    assert torch.equal(ours[0], 2 * transforms.to_tensor(image) - 1)
    assert torch.equal(ours, VaeImageProcessor(do_resize=False).preprocess(image))


def test_pictures_come_back_as_diffusers_gives_them() -> None:
    x = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))  # a third lies beyond the range
    theirs = VaeImageProcessor(do_resize=False).postprocess(x, output_type="pil")
    differences = [np.abs(np.asarray(a, int) - np.asarray(b, int)) for a, b in zip(to_pil(x), theirs, strict=True)]
    # Both round x * 127.5 + 127.5, on other ways in float32: a number that lies at a half goes up or down.
    assert max(one.max() for one in differences) <= 1 and np.mean(differences) < 1e-4
    levels = from_numpy(LEVELS)
    (there,) = VaeImageProcessor(do_resize=False).postprocess(levels, output_type="pil")
    assert np.array_equal(np.asarray(there), LEVELS) and np.array_equal(to_numpy(levels)[0], LEVELS)


def test_bytes_in_a_tensor_of_channels_first() -> None:
    x = torch.from_numpy(LEVELS).permute(2, 0, 1)
    assert torch.equal(from_uint8(x), from_numpy(LEVELS)) and torch.equal(from_uint8(x[None]), from_numpy(LEVELS))
    assert torch.equal(to_uint8(from_uint8(x))[0], x)
    with pytest.raises(UserError, match=r"tensor of shape \[3, 16, 16\], float32: give uint8"):
        from_uint8(x.float())


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_floats_need_their_range(dtype: type) -> None:
    unit: Any = (LEVELS / 255).astype(dtype)
    with pytest.raises(UserError, match=r"values=\(0, 1\)"):
        from_numpy(unit)
    # One rounding of the type at 1, times 2 for the wider range.
    step = 2 * float(np.finfo(dtype).eps) + torch.finfo(torch.float32).eps
    torch.testing.assert_close(from_numpy(unit, values=(0, 1)), from_numpy(LEVELS), rtol=0, atol=step)
    assert torch.equal(
        from_numpy(unit * 2 - 1, values=(-1, 1)), torch.from_numpy(unit * 2 - 1).permute(2, 0, 1)[None].float()
    )


def test_sixteen_bits_go_by_their_range() -> None:
    wide = LEVELS.astype(np.uint16) * 257
    torch.testing.assert_close(from_numpy(wide, values=(0, 65535)), from_numpy(LEVELS), rtol=0, atol=1.2e-7)


@pytest.mark.parametrize("values", [(0, 1), (-1, 1)])
def test_numbers_outside_of_the_range_are_refused(values: tuple[float, float]) -> None:
    for wrong in (3.0, float("nan")):
        with pytest.raises(UserError, match="give what it really holds"):
            from_numpy(np.full((1, 4, 4, 3), wrong), values=values)
    with pytest.raises(UserError, match="black"):
        from_numpy(np.zeros((4, 4, 3)), values=(1, 0))


def test_lists_of_one_size_are_a_batch_and_others_are_told_what_to_do() -> None:
    assert torch.equal(from_numpy([LEVELS, LEVELS]), from_numpy(np.stack([LEVELS, LEVELS])))
    with pytest.raises(UserError, match=r"\[codec.encode\(from_numpy\(image\)\) for image in images\]"):
        from_numpy([LEVELS, LEVELS[:8]])
    assert torch.equal(from_pil(picture(i) for i in (0, 1)), from_pil([picture(0), picture(1)]))
    with pytest.raises(UserError, match=r"2 pictures of 2 sizes: .*codec.encode\(from_pil\(image\)\)"):
        from_pil([picture(0), picture(0).resize((5, 9))])
    for nothing in (from_pil, from_numpy):
        with pytest.raises(UserError, match="at least one"):
            nothing([])
    with pytest.raises(UserError, match=r"array\[\.\.\., None\]"):
        from_numpy(LEVELS[:, :, 0])


@pytest.mark.parametrize(
    ("helper", "given", "said"),
    [
        (from_pil, "a.jpg", r"'a\.jpg' in place of a picture of Pillow: give Image\.open\(FILE\)"),
        (from_pil, [Path("a.jpg")], r"a\.jpg.* in place of a picture of Pillow: give Image\.open"),
        (from_pil, LEVELS, "ndarray in place of a picture of Pillow: from_numpy takes it"),
        (from_pil, torch.zeros(1, 3, 4, 4), r"Tensor in place of .*: tensors of floats need no helper"),
        (from_pil, None, "NoneType in place of a picture of Pillow"),
        (from_pil, Image.fromarray(LEVELS[:, :, 0].astype(np.uint16)), r"16 x 16: .* I;16: .*values=\(black, white\)"),
        (from_numpy, torch.zeros(4, 4, 3, dtype=torch.uint8), "Tensor in place of an array: from_uint8 takes it"),
        (from_numpy, [torch.zeros(4, 4, 3)], "Tensor in place of an array: tensors of floats need no helper"),
        (from_numpy, picture(0), "Image in place of an array: from_pil takes it"),
        (from_numpy, [1, 2], "int in place of an array"),
        (from_uint8, LEVELS, "ndarray in place of a tensor: from_numpy takes it"),
        (from_uint8, "a.jpg", "in place of a tensor: give uint8"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)  # fmt: skip
def test_what_a_helper_does_not_take_is_refused_in_a_line(helper: Any, given: Any, said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        helper(given)
    assert "\n" not in str(refused.value)


def test_arrays_of_no_numbers_and_damaged_pictures_are_refused_in_a_line() -> None:
    with pytest.raises(UserError, match=r"an array of complex128, shape \[4, 4, 3\]: give integers"):
        from_numpy(np.zeros((4, 4, 3), complex), values=(0, 1))
    file = io.BytesIO()
    picture(0).save(file, "PNG")
    with pytest.raises(UserError, match=r"a picture of 48 x 40: .*leave a damaged one out"):
        from_pil(Image.open(io.BytesIO(file.getvalue()[:-200])))


def test_helpers_are_imported_when_asked_for() -> None:
    import ldm_vae

    assert {"from_pil", "to_pil", "from_numpy", "to_numpy", "from_uint8", "to_uint8"} <= set(ldm_vae.__all__)
    assert all(callable(getattr(ldm_vae, name)) for name in ldm_vae.__all__ if name != "__version__")


def test_a_folder_of_photographs(tmp_path: Path) -> None:
    """Palette, grey with transparency, and CMYK, as files hold them."""
    for mode, name in (("P", "a.png"), ("LA", "b.png"), ("CMYK", "c.jpg")):
        picture(0).convert("L" if mode == "LA" else mode).convert(mode).save(tmp_path / name)
        with Image.open(tmp_path / name) as image:
            x = from_pil(image)
        assert x.shape[1] == 3 and -1 <= x.min() < x.max() <= 1

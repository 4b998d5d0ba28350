from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ldm_vae import LatentCodec
from ldm_vae.errors import UserError
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.piecewise import Plan, decode_pieces, encode_pieces, plan_decode
from ldm_vae.piecewise.chains.kl import decoder_steps
from ldm_vae.piecewise.evaluate import run_plan
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical

Network = Callable[..., Autoencoder]
Run = Callable[..., tuple[Tensor, Plan]]  # decode_pieces or encode_pieces


def inputs(model: Autoencoder, height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    """Latents of height x width, and images that have such latents."""
    generator, dtype, f = torch.Generator().manual_seed(0), model.decoder.conv_in.weight.dtype, model.config.factor
    z = torch.randn(batch, model.config.latent_channels, height, width, generator=generator)
    image = torch.rand(batch, model.config.in_channels, height * f, width * f, generator=generator) * 2.0 - 1.0
    return z.to(dtype), image.to(dtype)


def full(run: Run, model: Autoencoder, x: Tensor) -> Tensor:
    """In one pass of the network what `run` does in pieces."""
    return model.decode(x) if run is decode_pieces else model.encode(x)


def check(pieces: Tensor, run: Run, model: Autoencoder, x: Tensor) -> None:
    """The pieces are the full pass, but for float32's rounding of sums in another order."""
    with torch.no_grad():
        assert_as_exact(pieces, full(run, model, x), full(run, double(model), x.double()))


def squeezed(run: Run, model: Autoencoder, x: Tensor, part: float) -> tuple[Tensor, Plan]:
    """In this part of the memory that the default plan takes, or in the least that is possible."""
    bound = int(part * run(model, x)[1].working_bytes)
    try:
        result, plan = run(model, x, max_memory=bound)
    except UserError as error:
        bound = int(error.remedy.split()[-1].replace(",", ""))
        result, plan = run(model, x, max_memory=bound)
    assert plan.working_bytes <= bound
    return result, plan


@pytest.fixture
def small_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuts small pictures as large ones are cut by default."""
    monkeypatch.setattr("ldm_vae.piecewise.plan.STRIP_BYTES", 2**16)


@pytest.mark.usefixtures("small_strips")
def test_every_architecture(architecture: Autoencoder) -> None:
    scale = 32 // architecture.config.factor
    z, image = inputs(architecture, 3 * scale, 5 * scale)
    for run, x in ((decode_pieces, z), (encode_pieces, image)):
        with torch.no_grad():
            whole, exact = full(run, architecture, x), full(run, double(architecture), x.double())
        result, plan = run(architecture, x)
        assert plan.strips > 4 and plan.work == 1.0  # in pieces, and nothing computed twice
        assert_as_exact(result, whole, exact)
        result, plan = squeezed(run, architecture, x, 0.4)
        assert plan.strips > 1 and plan.work > 1.0  # some of it computed again
        assert_as_exact(result, whole, exact)


SIZES = [(1, 1), (2, 1), (1, 3), (5, 7), (31, 2), (1, 128), (128, 1)]


@pytest.mark.usefixtures("small_strips")
@pytest.mark.parametrize(("height", "width"), SIZES)
def test_extreme_sizes(network: Network, height: int, width: int) -> None:
    model = network(block_out_channels=(8, 8, 16, 16), attention_levels=(2,))
    z, image = inputs(model, height, width)
    for run, x in ((decode_pieces, z), (encode_pieces, image)):
        check(run(model, x)[0], run, model, x)
        check(squeezed(run, model, x, 0.5)[0], run, model, x)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(height=st.integers(1, 12), width=st.integers(1, 12), strips=st.integers(1, 50), keep=st.integers(0, 2**32 - 1))
def test_any_plan_in_float64(network: Network, height: int, width: int, strips: int, keep: int) -> None:
    """Not only the plans that a bound asks for: any kept boundaries, any number of strips."""
    model = network(attention_levels=(1,)).double()
    z, _ = inputs(model, height, width)
    steps = decoder_steps(model, height, width)
    plan = plan_decode(model, height, width)
    segments = [plan.segments[0]]
    for i, segment in enumerate(plan.segments[1:]):
        attends = type(steps[segment.first - 1]).__name__ == "Attending"  # is the last of its segment
        if attends or keep >> i & 1:
            segments.append(segment)
        else:
            segments[-1] = replace(
                segment, first=segments[-1].first, keep_hidden=segment.keep_hidden and bool(keep >> i & 2)
            )
    result = torch.empty(1, 3, 4 * height, 4 * width, dtype=torch.float64)
    with torch.no_grad():
        run_plan(replace(plan, strips=strips, segments=tuple(segments)), steps, z, result)
        whole = model.decode(z)
    # float64 through 20 layers: each rounds to 1e-16, and the norms divide by a spread that may be small.
    torch.testing.assert_close(result, whole, rtol=0, atol=1e-11 * whole.std().item())


@pytest.mark.usefixtures("small_strips")
def test_sides_that_are_no_multiple_of_f(network: Network) -> None:
    model, image = network(), torch.rand(1, 3, 147, 90) * 2.0 - 1.0
    result, plan = encode_pieces(model, image)
    assert plan.strips > 1 and result.shape == (1, 8, 147 // 4, 90 // 4)
    check(result, encode_pieces, model, image)


@pytest.mark.parametrize("max_memory", [None, 2**30])
def test_every_picture_of_a_batch(network: Network, max_memory: int | None) -> None:
    model = network()
    z, image = inputs(model, 4, 6, batch=3)
    for run, x in ((decode_pieces, z), (encode_pieces, image)):
        check(run(model, x, max_memory=max_memory)[0], run, model, x)


class Queries(TorchFunctionMode):
    """(queries, keys) of every attention."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[int, int]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.seen.append((args[0].shape[2], args[1].shape[2]))
        return func(*args, **(kwargs or {}))


def test_attention_runs_in_chunks_of_queries_and_once(network: Network) -> None:
    model = network()
    z, _ = inputs(model, 16, 8)
    with Queries() as queries:
        plan = squeezed(decode_pieces, model, z, 0.4)[1]
    chunks = queries.seen[1:]  # the first is that of the default plan
    assert plan.strips > 1 and len(chunks) > 1
    assert {keys for _, keys in chunks} == {16 * 8} and sum(count for count, _ in chunks) == 16 * 8


def test_bfloat16_is_as_good_as_the_full_pass(network: Network) -> None:
    model = network()
    z, image = inputs(model, 8, 8)
    with torch.no_grad():
        exact = model.decode(z), model.encode(image)
        model.bfloat16()
        full = model.decode(z.bfloat16()), model.encode(image.bfloat16())
    for run, x, expected, whole in zip((decode_pieces, encode_pieces), (z, image), exact, full, strict=True):
        result, plan = squeezed(run, model, x.bfloat16(), 0.5)
        assert result.dtype == torch.float32 and plan.strips > 1
        ours, theirs = (result - expected).square().mean().sqrt(), (whole - expected).square().mean().sqrt()
        assert ours < 1.2 * theirs  # both round every activation to 8 bits, in other places


def test_channels_last(network: Network) -> None:
    model = network().to(memory_format=torch.channels_last)
    z, image = inputs(model, 8, 8)
    for run, x in ((decode_pieces, z), (encode_pieces, image)):
        check(squeezed(run, model, x, 0.5)[0], run, model, x)


def test_tensors_of_a_diffusers_model_are_used_as_they_are(network: Network) -> None:
    torch.manual_seed(0)
    theirs = AutoencoderKL(
        block_out_channels=(8, 16), norm_num_groups=4, down_block_types=2 * ["DownEncoderBlock2D"],
        up_block_types=2 * ["UpDecoderBlock2D"],
    )  # fmt: skip
    with torch.device("meta"):
        ours = Autoencoder(AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1))
    ours.load_state_dict(theirs.state_dict(), assign=True)
    z, image = inputs(ours, 6, 9)
    exact = double(theirs)
    with torch.no_grad():
        pixels, moments = theirs.decode(z).sample, theirs.encode(image).latent_dist.parameters
        exact_pixels = exact.decode(z.double()).sample
        exact_moments = exact.encode(image.double()).latent_dist.parameters
    assert_as_exact(squeezed(decode_pieces, ours, z, 0.5)[0], pixels, exact_pixels)
    assert_as_exact(squeezed(encode_pieces, ours, image, 0.5)[0], moments, exact_moments)


def test_no_gradients(network: Network) -> None:
    model = network()
    assert not decode_pieces(model, inputs(model, 2, 2)[0].requires_grad_())[0].requires_grad


@pytest.mark.parametrize("part", [1.0, 0.6, 0.4, 0.25])
@pytest.mark.parametrize("run", [decode_pieces, encode_pieces])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_memory_stays_within_the_plan(
    network: Network, live_bytes: Callable[[], Any], run: Any, part: float, dtype: torch.dtype
) -> None:
    model = network(block_out_channels=(16, 16, 32)).to(dtype)
    x = inputs(model, 48, 20)[0 if run is decode_pieces else 1]
    whole, plan = run(model, x)
    bound = whole.nbytes + int(part * plan.working_bytes)
    with live_bytes() as live:
        result, plan = run(model, x, max_memory=bound)
        beyond = live.peak - result.nbytes
    assert beyond <= plan.working_bytes <= bound - result.nbytes
    # The bound is not idle: it also counts what the convolution library may copy, which this measure does not see.
    assert beyond > 0.25 * plan.working_bytes


@pytest.mark.parametrize(("direction", "channels"), [("decode_raw", 4), ("moments", 32)])
def test_a_batch_of_a_half_type_keeps_the_bound(
    network: Network, live_bytes: Callable[[], Any], direction: str, channels: int
) -> None:
    """The results of 16 pictures in float32, of which a second copy would be larger than what one picture takes."""
    model = network(block_out_channels=(8, 8), latent_channels=channels, mid_attention=False).bfloat16().eval()
    codec = LatentCodec(model)
    x = inputs(model, 16, 16, batch=16)[0 if direction == "decode_raw" else 1]
    with pytest.raises(UserError) as refused:
        getattr(codec, direction)(x, max_memory=1)
    bound = int(refused.value.remedy.split()[-1].replace(",", ""))
    with live_bytes() as live:
        result = getattr(codec, direction)(x, max_memory=bound)
    assert result.dtype == torch.float32 and live.peak <= bound


@pytest.mark.parametrize("run", [decode_pieces, encode_pieces])
def test_a_bound_for_another_device_is_not_compared_with_the_memory_of_this_process(
    network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Where the system tells the memory of this process, there is nothing to be read here: who looks, fails."""
    (tmp_path / "statm").touch()
    monkeypatch.setattr("ldm_vae.piecewise.room.STATM", tmp_path / "statm")
    model = network()
    x = inputs(model, 4, 6)[0 if run is decode_pieces else 1]
    with pytest.raises(IndexError):
        run(model, x, max_memory=2**30)
    result, _ = run(model.to("meta"), x.to("meta"), max_memory=2**30)
    assert result.device.type == "meta"


@pytest.mark.parametrize(
    ("run", "part"), [(decode_pieces, 0.5), pytest.param(encode_pieces, 0.7, marks=pytest.mark.slow)]
)
def test_default_takes_a_part_of_the_memory_of_the_full_pass(
    network: Network, live_bytes: Callable[[], Any], run: Any, part: float
) -> None:
    model = network(block_out_channels=(32, 64, 64), mid_attention=False)
    x = inputs(model, 128, 128)[0 if run is decode_pieces else 1]
    with live_bytes() as live:
        result, plan = run(model, x)
    ours = live.peak - result.nbytes
    with live_bytes() as live, torch.no_grad():
        whole = full(run, model, x)
    assert plan.strips > 1 and plan.work == 1.0
    assert ours <= part * (live.peak - whole.nbytes)
    check(result, run, model, x)


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(1536, 1536), (2048, 1000), (4096, 64), (64, 4096)])
def test_large_pictures(network: Network, height: int, width: int) -> None:
    model = network(block_out_channels=(8, 8, 16, 16))
    z, image = inputs(model, height // 8, width // 8)
    for run, x in ((decode_pieces, z), (encode_pieces, image)):
        with torch.no_grad():
            whole, exact = full(run, model, x), full(run, double(model), x.double())
        result, plan = run(model, x)
        assert plan.strips > 1
        assert_as_exact(result, whole, exact)
        assert_as_exact(squeezed(run, model, x, 0.5)[0], whole, exact)

from collections.abc import Iterator
from itertools import cycle, product

import pytest
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn

from ldm_vae.errors import UserError
from ldm_vae.losses.pixel import LOG_VARIANCE_HEAD, LogVariance
from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from ldm_vae.noise import GivenNoise
from tests.architectures import WIDTHS, name, small_config
from tests.tolerance import assert_as_exact, roundings

pytestmark = pytest.mark.numerical


def architectures() -> Iterator[AutoencoderConfig]:
    """Every f with every number of image channels, each with all eight of the on/off choices."""
    latent, layers = cycle((3, 4, 8, 16, 32)), cycle((1, 2))
    for f, image, (quant, middle, levels) in product(WIDTHS, (1, 3, 4, 12), product((True, False), repeat=3)):
        yield small_config(f, image, next(latent), next(layers), quant=quant, middle=middle, levels=levels)


def reference(config: AutoencoderConfig) -> AutoencoderKL:
    """The same architecture in diffusers."""
    levels = range(len(config.block_out_channels))
    attention = ["Attn" if level in config.attention_levels else "" for level in levels]
    return AutoencoderKL(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        latent_channels=config.latent_channels,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        down_block_types=[f"{a}DownEncoderBlock2D" for a in attention],
        up_block_types=[f"{a}UpDecoderBlock2D" for a in reversed(attention)],
        norm_num_groups=config.norm_groups,
        mid_block_add_attention=config.mid_attention,
        use_quant_conv=config.quant_conv,
        use_post_quant_conv=config.post_quant_conv,
    )


def pair(config: AutoencoderConfig) -> tuple[Autoencoder, AutoencoderKL]:
    """Ours and diffusers' with the same weights, norms and biases away from their trivial initial values."""
    torch.manual_seed(0)
    theirs = reference(config)
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    ours = Autoencoder(config)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def picture(config: AutoencoderConfig, batch: int = 1) -> Tensor:
    """Two by three latent positions, so that height and width cannot be confused."""
    return torch.rand(batch, config.in_channels, 2 * config.factor, 3 * config.factor) * 2.0 - 1.0


@pytest.mark.parametrize("config", list(architectures()), ids=name)
def test_parity_with_diffusers(config: AutoencoderConfig) -> None:
    ours, theirs = pair(config)
    theirs.load_state_dict(ours.exported_state(), strict=True)
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in theirs.state_dict().items()
    }
    image = picture(config)
    z = torch.randn(ours.latent_shape(image))
    with torch.no_grad():
        mine = ours.encode(image), ours.decode(z)
        expected = theirs.encode(image).latent_dist.parameters, theirs.decode(z).sample
        ours, theirs, image, z = ours.double(), theirs.double(), image.double(), z.double()
        mine_in_float64 = ours.encode(image), ours.decode(z)
        exact = theirs.encode(image).latent_dist.parameters, theirs.decode(z).sample
    # Without attention bit-equal. diffusers' attention hands on channels_last activations, ours keeps the layout it was
    # given, so that convolutions sum in another order: about 20 roundings of the amplitude after the 50 random layers
    # of f = 32. In float64, where a rounding is 2e-16, 1000 of them are allowed.
    attends = bool(config.mid_attention or config.attention_levels)
    for found, true in zip(mine_in_float64, exact, strict=True):
        torch.testing.assert_close(found, true, rtol=0, atol=roundings(true, 1000) if attends else 0.0)
    for found, other, true in zip(mine, expected, exact, strict=True):
        assert_as_exact(found, other, true) if attends else torch.testing.assert_close(found, other, rtol=0, atol=0)


@pytest.mark.parametrize("config", [c for c in architectures() if c.in_channels == 3 and c.quant_conv], ids=name)
def test_gradients_equal_those_of_diffusers(config: AutoencoderConfig) -> None:
    ours, theirs = pair(config)
    ours, theirs = ours.double(), theirs.double()
    image = picture(config, batch=2).double()
    noise = torch.randn(ours.latent_shape(image)).double()
    output = ours(image, noise=GivenNoise(noise))
    (F.mse_loss(output.reconstruction, output.target) + 1e-3 * output.posterior.rate.mean()).backward()
    posterior = theirs.encode(image).latent_dist
    decoded = theirs.decode(posterior.mean + posterior.std * noise).sample
    (F.mse_loss(decoded, image) + 1e-3 * posterior.kl().mean()).backward()
    gradients = dict(theirs.named_parameters())
    squares = torch.tensor([[0.0, 0.0]], dtype=torch.float64)
    for key, parameter in ours.named_parameters():
        mine, other = parameter.grad, gradients[key].grad
        assert mine is not None and other is not None
        squares += torch.stack([(mine - other).double().square().sum(), other.double().square().sum()])
    difference, norm = squares[0].sqrt().tolist()
    assert difference <= 1e-10 * norm  # float64, in which sums in another order leave about 1e-14


@pytest.mark.parametrize(
    ("changes", "encoder", "decoder", "total"),
    [  # counted on the published checkpoints
        ({}, 34_163_592, 49_490_179, 83_653_863),  # Stable Diffusion, SDXL
        (dict(latent_channels=16, quant_conv=False, post_quant_conv=False), 34_274_208, 49_545_475, 83_819_683),  # SD3
        (dict(latent_channels=32), 34_421_696, 49_619_203, None),  # FLUX.2
        (dict(latent_channels=3, block_out_channels=(128, 256, 512)), 22_351_238, 32_960_771, 55_312_063),  # kl-f4
        (
            dict(latent_channels=16, block_out_channels=(128, 128, 256, 256, 512), attention_levels=(4,)),
            None,
            None,
            69_610_963,
        ),  # kl-f16
    ],
)
def test_published_sizes(
    changes: dict[str, object], encoder: int | None, decoder: int | None, total: int | None
) -> None:
    def count(module: nn.Module) -> int:
        return sum(parameter.numel() for parameter in module.parameters())

    config = AutoencoderConfig.model_validate(changes)
    with torch.device("meta"):
        model = Autoencoder(config)
        assert count(model) == count(reference(config))
    for part, expected in ((model.encoder, encoder), (model.decoder, decoder), (model, total)):
        assert expected in (None, count(part))


SMALL = AutoencoderConfig(block_out_channels=(8, 16), norm_groups=4, layers_per_block=1, attention_levels=(1,))


def build(config: AutoencoderConfig = SMALL, *, learned_variance: bool = False) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(config, {LOG_VARIANCE_HEAD: LogVariance()} if learned_variance else None)


def test_gradient_checkpointing_recomputes_and_changes_no_bit() -> None:
    image = picture(SMALL, batch=2)
    gradients, counts = [], []
    for checkpointing in (False, True):
        model = build(SMALL.model_copy(update={"gradient_checkpointing": checkpointing}))
        forwards: list[nn.Module] = []
        encoder, decoder = model.encoder, model.decoder
        for block in (*encoder.down_blocks, encoder.mid_block, decoder.mid_block, *decoder.up_blocks):
            block.resnets[0].register_forward_hook(lambda module, *_, seen=forwards: seen.append(module))
        model(image, noise=None).reconstruction.square().mean().backward()
        counts.append(len(forwards))
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert counts == [6, 12]
    for plain, recomputed in zip(*gradients, strict=True):
        assert (plain is None and recomputed is None) or torch.equal(plain, recomputed)


def test_output_of_the_one_call_of_training() -> None:
    model, image = build(learned_variance=True), picture(SMALL, batch=2)
    noise = torch.randn(model.latent_shape(image))
    output = model(image, noise=GivenNoise(noise), label=torch.zeros(2, dtype=torch.int64))
    assert torch.equal(output.target, image) and torch.equal(output.latent, output.posterior.z)
    assert torch.equal(model.decoder.conv_out(output.below["decoder"]), output.reconstruction)
    assert torch.equal(model.decode(output.latent), output.reconstruction)
    assert output.heads[LOG_VARIANCE_HEAD] is model.heads[LOG_VARIANCE_HEAD].value and output.posterior.rate.shape == (
        2,
    )
    assert torch.equal(model(image).latent, model.encode(image)[:, : SMALL.latent_channels])  # without noise, the mode


@pytest.mark.parametrize("size", [(32, 30), (31, 32)])
def test_training_images_of_other_sizes_are_refused(size: tuple[int, int]) -> None:
    model = Autoencoder(AutoencoderConfig(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1))
    with pytest.raises(UserError, match=f"training images of {size[0]}x{size[1]} pixels, .* no multiple of f = 4: set"):
        model.latent_shape(torch.zeros(1, 3, *size))


def test_samples_are_drawn_image_by_image() -> None:
    model, image = build().double(), picture(SMALL, batch=2).double()
    batch, *shape = model.latent_shape(image)
    noise = torch.randn(3 * batch, *shape).double()
    output = model(image, noise=GivenNoise(noise), samples=3)
    assert output.reconstruction.shape == (6, *image.shape[1:])
    assert torch.equal(output.target, image[[0, 0, 0, 1, 1, 1]])
    once = model(image[[0, 0, 0, 1, 1, 1]], noise=GivenNoise(noise))
    # Another batch size, another order of sums; in float64.
    torch.testing.assert_close(output.reconstruction, once.reconstruction)
    torch.testing.assert_close(output.posterior.rate, once.posterior.rate)


class QuarterTurn:
    def image(self, image: Tensor) -> Tensor:
        return image.rot90(dims=(2, 3))

    latent = image


def test_view_turns_latent_and_target_alike() -> None:
    model, image = build(), picture(SMALL)
    output, plain = model(image, view=QuarterTurn()), model(image)
    assert torch.equal(output.target, image.rot90(dims=(2, 3)))
    assert torch.equal(output.latent, plain.latent.rot90(dims=(2, 3)))
    assert torch.equal(output.reconstruction, model.decode(output.latent))
    assert torch.equal(output.posterior.rate, plain.posterior.rate)  # the rate is that of the picture as it was


def test_what_losses_learn_is_not_exported() -> None:
    model = build(learned_variance=True)
    assert "heads.log_variance.value" in model.state_dict()
    reference(SMALL).load_state_dict(model.exported_state(), strict=True)


def test_bfloat16_autocast_keeps_the_posterior_in_float32() -> None:
    model, image = build(), picture(SMALL)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = model(image)
    assert output.reconstruction.dtype == torch.bfloat16  # the networks did run in it
    assert output.latent.dtype == output.posterior.rate.dtype == torch.float32
    output.reconstruction.float().square().mean().backward()
    weight = model.encoder.conv_in.weight
    assert weight.grad is not None and weight.grad.dtype == torch.float32 and weight.grad.isfinite().all()


def test_float64_stays() -> None:
    model, image = build().double(), picture(SMALL).double()
    output = model(image, noise=GivenNoise(torch.randn(model.latent_shape(image))))
    tensors = vars(output).values()
    assert {value.dtype for value in (*tensors, output.posterior.rate) if isinstance(value, Tensor)} == {torch.float64}

"""LatentCodec: image <-> scaled latent, the one object that everything outside training uses."""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ldm_vae.arguments import device_named, floating_type, kind_of, name_of_type, remedy_for_images
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.data.images.pixels import RANGE_TOLERANCE, from_pillow, to_uint8
from ldm_vae.errors import UserError
from ldm_vae.interop import hub
from ldm_vae.interop.export import export_model, sample_size_of
from ldm_vae.interop.layouts.layout import describe_parts, exchanged_state, layout_of
from ldm_vae.interop.load import LoadedModel, ModelSource, encoder_hash, load_model, statistics_of, weights_hash
from ldm_vae.networks.network import Network
from ldm_vae.noise import GivenNoise
from ldm_vae.piecewise import decode_pieces, encode_pieces
from ldm_vae.piecewise.chains.chain import has_chains
from ldm_vae.precision import at_least_float32

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

BYTES_FROM = 16.0  # images with larger values are of 8 bits; normalised ones do not go so far
logger = logging.getLogger(__name__)
# Pictures of at least this many pixels are evaluated in pieces: the same result in less memory. Smaller ones run in one
# pass as a batch, which takes less than 0.9 GB a picture (measured with 64 channels).
PIECES_FROM = 2**20


class NonFiniteError(UserError):
    """A result holds NaN or infinity, even when computed in float32.

    samples: places in the batch of the samples that have no finite result.
    """

    def __init__(self, what: str, samples: list[int]) -> None:
        super().__init__(f"{what} of sample {', '.join(map(str, samples))} of the batch is not finite", "leave it out")
        self.samples = samples


class LatentCodec:
    """An autoencoder and the scale of its latents.

    Images are (B, C, H, W) in [-1, 1], of any size; results are not clamped. Latents are (B, c, h, w) with
    h = ceil(H / f). Inputs are moved to the codec's device and type; results are on its device, in at least float32.
    The networks run in the codec's own type, whatever autocast says, and without gradients.
    """

    def __init__(
        self,
        model: Network,
        scale: LatentScale | None = None,
        source: ModelSource | None = None,
        *,
        weights_hash: str | None = None,
        encoder_hash: str | None = None,
    ) -> None:
        """
        scale: None where nobody has measured the latents. They are then left as they are, with a warning.
        weights_hash, encoder_hash: hashes of the weights before their type was changed. None: computed when asked for.
        """
        self.source = source or ModelSource("a network in memory", "live")
        if not model.codec:
            what = f"{self.source.name} is a network of kind {model.config.kind}"
            raise UserError(what, "it needs labels or one size of image, and is no codec of images of any size")
        self.model = model
        self.scale = scale
        self._weights_hash = weights_hash
        self._encoder_hash = encoder_hash
        self._warned: set[str] = set()

    @staticmethod
    def load(
        ref: str | Path | AutoencoderKL,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | str | None = None,
        variant: str | None = None,
        channels_last: bool = False,
        compile: bool = False,
    ) -> LatentCodec:
        """Loads a codec. Raises UserError for what cannot be loaded.

        ref: a run (its newest whole checkpoint, EMA weights), a checkpoint, an exported folder (diffusers' or our own),
        a Hub id, or a live AutoencoderKL, whose tensors are shared unless device or dtype differ.
        device: None takes a GPU where there is one; a live model stays where it is.
        dtype: a type of torch or its name, such as "bfloat16". None takes float32; a live model keeps its own.
        variant: of an exported folder, the file of rounded weights to read, such as fp16; None prefers the others.
        channels_last: stores the weights in that memory layout. Changes speed and the order of sums, nothing else.
        compile: compiles the networks with torch.compile. Changes speed and the order of sums, nothing else.
        """
        dtype = floating_type(dtype)
        loaded = load_model(ref, variant=variant)
        live = loaded.source.kind == "live"
        if device is None and not live:
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if dtype is None and not live:
            dtype = torch.float32
        rounded = dtype not in (None, torch.float32)
        hashes = (weights_hash(loaded.model), encoder_hash(loaded.model)) if rounded else (None, None)
        model = loaded.model.to(device_named(device))
        if dtype is not None:
            model.cast(dtype)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        if compile:
            for network in (child for child in model.children() if any(child.children())):
                network.compile()  # in place: the names of parameters stay
        return LatentCodec(model, loaded.scale, loaded.source, weights_hash=hashes[0], encoder_hash=hashes[1])

    @property
    def factor(self) -> int:
        """f: pixels per latent position along each side."""
        return self.model.config.factor

    @property
    def latent_channels(self) -> int:
        return self.model.config.latent_channels

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    @property
    def precision(self) -> str:
        """The name of the codec's type, such as float32."""
        return name_of_type(self.dtype)

    @property
    def weights_hash(self) -> str:
        """The sha256 of the weights. The scale is not part of it, since it may be measured later."""
        if self._weights_hash is None:
            self._weights_hash = weights_hash(self.model)
        return self._weights_hash

    @property
    def encoder_hash(self) -> str:
        """The sha256 of the weights that latents depend on: all but the decoder's."""
        if self._encoder_hash is None:
            self._encoder_hash = encoder_hash(self.model)
        return self._encoder_hash

    @property
    def hashes(self) -> tuple[str, ...]:
        """What stored latents may name this codec by: `weights_hash`, `encoder_hash`, and codecs with its encoder."""
        return (self.weights_hash, self.encoder_hash, *self.source.codecs)

    def moments(self, images: Tensor, *, pad: bool = True, max_memory: int | None = None) -> Tensor:
        """(B, C, H, W) -> (B, width * c, h, w), raw, as the encoder returns it.

        A Gaussian bottleneck has the width 2: mean and log-variance of the posterior. Raises NonFiniteError.

        pad: whether sides that are no multiple of f are padded on the right and below by reflection; without it the
        encoder rounds them down, as AutoencoderKL does.
        max_memory: as in `decode`.
        """
        moments, broken = self.checked_moments(images, pad=pad, max_memory=max_memory)
        if broken:
            raise NonFiniteError("the posterior", broken)
        return moments

    def checked_moments(
        self, images: Tensor, *, pad: bool = True, max_memory: int | None = None
    ) -> tuple[Tensor, list[int]]:
        """The moments, and the places in the batch of those that are not finite, not even in float32."""
        self._check_images(images)
        if pad:
            images = pad_to_multiple(images, self.factor)
        return self._finite(partial(_encode_by_network, max_memory=max_memory), images, "posteriors")

    def encode(
        self,
        images: Tensor,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        max_memory: int | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, c, h, w), scaled: the posterior's mode, or a sample of it.

        Raises NonFiniteError, and UserError for a sample where the bottleneck draws nothing.

        generator: draws the noise, on any device. A CPU generator gives the same noise for codecs on any device.
        max_memory: as in `decode`.
        """
        if self.scale is None:
            self._warn(
                "scale", f"the latents of {self.source.name} are not scaled: nobody has measured them (`ldm-vae stats`)"
            )
        moments = self.moments(images, max_memory=max_memory)
        return self._scaled(self.draw(moments, sample=sample, generator=generator))

    def decode(self, latents: Tensor, *, size: tuple[int, int] | None = None, max_memory: int | None = None) -> Tensor:
        """(B, c, h, w), scaled -> (B, C, h*f, w*f), or cropped to `size` = (H, W). Raises NonFiniteError.

        max_memory: bound on the working memory in bytes; weights, input, output, keys and values of attention do not
        count. The network is then evaluated in pieces, as it is for pictures of PIECES_FROM pixels or more anyway.
        Raises UserError for a bound that cannot be kept, and names the lowest that can.
        """
        self._check_latents(latents)
        return self.decode_raw(self._unscaled(at_least_float32(latents)), size=size, max_memory=max_memory)

    def reconstruct(self, images: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): encodes and decodes, without scaling the latents in between.

        sample, generator: as in `encode`.
        """
        z = self.draw(self.moments(images), sample=sample, generator=generator)
        return self.decode_raw(z, size=(images.shape[2], images.shape[3]))

    def decode_raw(self, z: Tensor, *, size: tuple[int, int] | None = None, max_memory: int | None = None) -> Tensor:
        """Decodes raw latents, such as the mean in `moments`; otherwise like `decode`."""
        self._check_latents(z)
        height, width = z.shape[2] * self.factor, z.shape[3] * self.factor
        if size is not None and not (0 < size[0] <= height and 0 < size[1] <= width):
            raise UserError(f"size {size[0]} x {size[1]}", f"these latents decode to {height} x {width} at most")
        images, broken = self._finite(partial(_decode_by_network, max_memory=max_memory), z, "images")
        if broken:
            raise NonFiniteError("the image", broken)
        return images if size is None else images[:, :, : size[0], : size[1]]

    def as_diffusers(self, *, max_memory: int | None = None) -> AutoencoderKL:
        """An AutoencoderKL of diffusers that encodes and decodes as this codec does: `pipe.vae = codec.as_diffusers()`.

        It shares the codec's tensors. What is done to it later counts, as with any AutoencoderKL: where its modules no
        longer compute what its configuration says, diffusers' own pass runs (`why_plain`). Raises UserError for a codec
        without a scale, since pipelines need one.

        max_memory: as in `decode`, for encoding too.
        """
        from ldm_vae.interop.drop_in import drop_in

        if self.scale is None:
            raise UserError(f"the latents of {self.source.name} have no scale", "measure them: `ldm-vae stats --write`")
        model, source = self.model, self.source
        layout = layout_of(model)
        if layout is None or layout.CLASS != "AutoencoderKL":
            raise UserError(describe_parts(model), "diffusers' AutoencoderKL cannot hold it")
        sample_size = sample_size_of(source, model.config)
        config = layout.to_config(model.config, self.scale, sample_size=sample_size, force_upcast=source.force_upcast)
        return drop_in(config, exchanged_state(model), LatentCodec, max_memory)

    def push_to_hub(self, hub_id: str, *, private: bool | None = None, token: str | None = None) -> str:
        """Exports the codec with its model card to the model `hub_id` on the Hugging Face Hub.

        Returns the address of the commit. Raises UserError for a codec without a scale, or in a half type.

        private, token: as in `interop.hub.push`.
        """
        if self.dtype in (torch.bfloat16, torch.float16):
            raise UserError(f"weights rounded to {self.precision}", "load the codec in float32 to upload it")
        with TemporaryDirectory() as folder:
            loaded = LoadedModel(self.model, self.scale, self.source)
            statistics = statistics_of(self.source, self.weights_hash)
            command = f"codec.push_to_hub({hub_id!r})"
            for note in export_model(loaded, Path(folder, "export"), statistics, command=command):
                logger.warning(note)
            return hub.push(Path(folder, "export"), hub_id, private=private, token=token)

    def draw(self, moments: Tensor, *, sample: bool = False, generator: torch.Generator | None = None) -> Tensor:
        """Moments (B, width * c, h, w) -> raw latents (B, c, h, w): the posterior's mode, or a sample of it.

        Raises UserError for a sample where the bottleneck draws nothing.
        """
        noise = None
        if sample:
            self.require_posterior()
            shape = (moments.shape[0], self.latent_channels, *moments.shape[2:])
            where = moments.device if generator is None else generator.device
            noise = GivenNoise(torch.randn(shape, generator=generator, device=where, dtype=moments.dtype))
        z: Tensor = self.model.bottleneck(at_least_float32(moments), noise).z
        return z

    def require_posterior(self) -> None:
        """Raises UserError where there is no posterior to sample from."""
        if not self.model.bottleneck.random:
            kind = self.model.config.bottleneck.kind
            what = f"{self.source.name} has a {kind} bottleneck and no posterior to sample from"
            raise UserError(what, "take its mode (--latent mode)")

    def _scaled(self, z: Tensor) -> Tensor:
        return z if self.scale is None else self.scale.apply(z)

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents if self.scale is None else self.scale.remove(latents)

    @torch.no_grad()
    def _finite(self, network: Callable[[Network, Tensor], Tensor], x: Tensor, what: str) -> tuple[Tensor, list[int]]:
        """Returns network(model, x) and the places of the samples that are not finite.

        The network runs in the codec's type; samples that come out not finite are computed again in float32.
        """
        x = x.to(self.device)
        with torch.autocast(self.device.type, enabled=False):
            result = at_least_float32(network(self.model, x.to(self.dtype)))
            broken = _not_finite(result)
            if broken and self.dtype in (torch.bfloat16, torch.float16):
                logger.warning(
                    "%d of %d %s are not finite in %s: computed again in float32",
                    len(broken), len(x), what, self.precision,
                )  # fmt: skip
                # A copy that was kept would not know of weights that somebody has changed since.
                again = network(copy.deepcopy(self.model).float(), x[broken].float())
                result[broken] = again
                broken = [broken[i] for i in _not_finite(again)]
        return result, broken

    def _check_images(self, images: Tensor) -> None:
        channels = self.model.config.in_channels
        if not isinstance(images, Tensor):
            raise UserError(f"images that are {kind_of(images)}", remedy_for_images(images, channels))
        if images.ndim != 4 or images.shape[1] != channels or not images.is_floating_point():
            given = f"images of shape {list(images.shape)}, {name_of_type(images.dtype)}"
            of_bytes = "" if images.is_floating_point() else ", such as `x.float() / 127.5 - 1` of 8 bits"
            raise UserError(given, f"give floats (B, {channels}, H, W) in [-1, 1]{of_bytes}")
        if images.numel() == 0:
            raise UserError(f"images of shape {list(images.shape)}", "give at least one image of at least one pixel")
        low, high = images.aminmax()
        lowest, highest = torch.stack([low, high]).tolist()  # one transfer
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            broken = _not_finite(images)
            raise NonFiniteError("the picture", broken)
        held = f"images hold values from {lowest:g} to {highest:g}; the codec was trained on [-1, 1]"
        if highest > BYTES_FROM:
            self._warn("bytes", f"{held}: give `x / 127.5 - 1` of 8 bits")
        elif lowest < -1 - RANGE_TOLERANCE or highest > 1 + RANGE_TOLERANCE:
            self._warn("beyond", f"{held}: give clamped ones, or another normalisation")
        elif 0 <= lowest < highest:
            self._warn("unit", f"{held}: if yours are in [0, 1], give `2 * x - 1`")

    def _check_latents(self, z: Tensor) -> None:
        if not isinstance(z, Tensor):
            remedy = f"give a tensor of floats (B, {self.latent_channels}, h, w), such as torch.from_numpy(latents)"
            raise UserError(f"latents that are {kind_of(z)}", remedy)
        if z.ndim != 4 or z.shape[1] != self.latent_channels or not z.is_floating_point():
            given = f"latents of shape {list(z.shape)}, {name_of_type(z.dtype)}"
            raise UserError(given, f"this codec decodes floats (B, {self.latent_channels}, h, w)")

    def _warn(self, kind: str, message: str) -> None:
        """Warns once for each kind of message."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", message)


def pad_to_multiple(images: Tensor, multiple: int) -> Tensor:
    """Pads images (B, C, H, W) on the right and below, so that both sides become multiples of `multiple`.

    Pads by reflection; a side that is too short for that repeats its last row or column.
    """
    height, width = images.shape[2:]
    below, right = -height % multiple, -width % multiple
    if below:
        images = F.pad(images, (0, 0, 0, below), mode="reflect" if below < height else "replicate")
    if right:
        images = F.pad(images, (0, right, 0, 0), mode="reflect" if right < width else "replicate")
    return images


def from_pil(images: Image.Image | Sequence[Image.Image], channels: int = 3) -> Tensor:
    """Pictures of one size -> (B, channels, H, W) in [-1, 1], colours by the rules of `data.images`."""
    pictures = [images] if isinstance(images, Image.Image) else list(images)
    if len(sizes := {picture.size for picture in pictures}) != 1:
        raise UserError(f"{len(pictures)} pictures of {len(sizes)} sizes", "give pictures of one size at a time")
    return from_numpy(np.stack([from_pillow(picture, channels) for picture in pictures]))


def to_pil(images: Tensor) -> list[Image.Image]:
    """(B, 1, 3 or 4, H, W), clamped to [-1, 1] -> B pictures of 8 bits."""
    return [Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array) for array in to_numpy(images)]


def from_numpy(array: npt.NDArray[np.uint8]) -> Tensor:
    """(B, H, W, C) or (H, W, C), uint8 -> (B, C, H, W) in [-1, 1]."""
    if array.dtype != np.uint8 or array.ndim not in (3, 4):
        raise UserError(f"an array of {array.dtype}, shape {list(array.shape)}", "give uint8 (B, H, W, C) or (H, W, C)")
    tensor = torch.from_numpy(
        np.array(array if array.ndim == 4 else array[None], order="C")
    )  # without negative strides
    return tensor.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def to_numpy(images: Tensor) -> npt.NDArray[np.uint8]:
    """(B, C, H, W), clamped to [-1, 1] -> (B, H, W, C) uint8, rounded."""
    array: npt.NDArray[np.uint8] = to_uint8(images).permute(0, 2, 3, 1).cpu().numpy()
    return array


def _encode_by_network(model: Network, images: Tensor, *, max_memory: int | None) -> Tensor:
    if not _in_pieces(model, images.shape[2] * images.shape[3], max_memory):
        return model.encode(images)
    return encode_pieces(model, images, max_memory=max_memory)[0]


def _decode_by_network(model: Network, z: Tensor, *, max_memory: int | None) -> Tensor:
    if not _in_pieces(model, z.shape[2] * z.shape[3] * model.config.factor**2, max_memory):
        return model.decode(z)
    return decode_pieces(model, z, max_memory=max_memory)[0]


def _in_pieces(model: Network, pixels: int, max_memory: int | None) -> bool:
    """Whether pictures of this size are evaluated in pieces.

    Raises UserError for a bound on memory where the network cannot be evaluated in pieces.
    """
    if has_chains(model):
        return max_memory is not None or pixels >= PIECES_FROM
    if max_memory is not None:
        raise UserError(f"max_memory of {max_memory:,} bytes", f"a network of kind {model.config.kind} runs as a whole")
    return False


def _not_finite(x: Tensor) -> list[int]:
    """Places in the batch that hold NaN or infinity. Takes one transfer from the device."""
    bad: list[int] = (~x.isfinite().flatten(1).all(dim=1)).nonzero().flatten().tolist()
    return bad

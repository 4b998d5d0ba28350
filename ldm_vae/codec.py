"""LatentCodec: image <-> scaled latent, the one object that everything outside training uses."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm_vae.arguments import (
    check_images,
    check_latents,
    device_and_type,
    device_named,
    floating_type,
    refuse_absent_type,
    refuse_unknown,
)
from ldm_vae.arithmetic import exact_float32
from ldm_vae.bottlenecks.scale import LatentScale
from ldm_vae.errors import UserError
from ldm_vae.finite import NonFiniteError as NonFiniteError
from ldm_vae.finite import run_finite
from ldm_vae.images import from_numpy as from_numpy
from ldm_vae.images import from_pil as from_pil
from ldm_vae.images import to_numpy as to_numpy
from ldm_vae.images import to_pil as to_pil
from ldm_vae.interop import hub
from ldm_vae.interop.export import export_model, sample_size_of
from ldm_vae.interop.layouts.layout import describe_parts, exchanged_state, layout_of
from ldm_vae.interop.load import LoadedModel, ModelSource, encoder_hash, load_model, statistics_of, weights_hash
from ldm_vae.networks.compiled import compile_for_any_batch, compiled_parts, require_compiler
from ldm_vae.networks.network import Network, refuse_no_codec
from ldm_vae.noise import GivenNoise
from ldm_vae.padding import check_size, crop_to, pad_to_multiple
from ldm_vae.piecewise import passes
from ldm_vae.precision import at_least_float32, name_of_type

if TYPE_CHECKING:
    from diffusers import AutoencoderKL

logger = logging.getLogger(__name__)


class LatentCodec:
    """An autoencoder and the scale of its latents: images -> latents that a diffusion model learns, and back.

    Images are (B, C, H, W) in [-1, 1], floats, of any size; results are not clamped. Latents are (B, c, h, w) with
    h = ceil(H / f), scaled. Inputs are moved to the codec's device and type; results are on its device, in at least
    float32. The network runs in the codec's own type, whatever autocast says, and without gradients.

    >>> from PIL import Image
    >>> from ldm_vae import LatentCodec, from_pil, to_pil
    >>> codec = LatentCodec.load("codec", device="cpu")  # a run, an exported folder, or the id of a model on the Hub
    >>> codec
    LatentCodec: f4, 4 channels, network kl, bottleneck gaussian, float32 on cpu
      scale z * 0.5, loaded from codec (diffusers)
    >>> images = from_pil(Image.open("photo.png"))  # from_numpy, from_uint8: arrays and tensors of 8 bits
    >>> images.shape
    torch.Size([1, 3, 50, 70])
    >>> latent = codec.encode(images)
    >>> latent.shape  # sides are padded to a multiple of f
    torch.Size([1, 4, 13, 18])
    >>> to_pil(codec.decode(latent, size=(50, 70)))[0].save("decoded.png")

    What a person can mend raises UserError: a line that names the thing and the remedy. What comes out as NaN or
    infinity raises NonFiniteError, which names the places in the batch, and is never returned.
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
        refuse_no_codec(model, self.source.name)
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
        revision: str | None = None,
        subfolder: str | None = None,
    ) -> LatentCodec:
        """Loads a codec. Raises UserError for what cannot be loaded.

        ref: a run (its newest whole checkpoint, EMA weights), a checkpoint, an exported folder (diffusers' or our own),
        a Hub id, or a live AutoencoderKL, whose tensors are shared unless device or dtype differ.
        device: None takes a GPU where there is one; a live model stays where it is.
        dtype: a type of torch or its name, such as "bfloat16". None takes float32; a live model keeps its own.
        variant: of an exported folder, the file of rounded weights to read, such as fp16; None prefers the others.
        channels_last: stores the weights in that memory layout. Changes speed and the order of sums, nothing else.
        compile: compiles encoder and decoder with torch.compile, for each size of images once, whatever their number.
        Changes speed and the order of sums, nothing else. Raises UserError where nothing can be compiled.
        revision: of a model on the Hub, the branch, tag or commit; None takes its newest state.
        subfolder: the folder inside the model that holds the codec. None looks at the top, then under vae/.

        >>> LatentCodec.load("codec", device="cpu", dtype="bfloat16").dtype
        torch.bfloat16
        """
        dtype = floating_type(dtype)
        loaded = load_model(ref, variant=variant, revision=revision, subfolder=subfolder)
        live = loaded.source.kind == "live"
        if device is None and not live:
            device = torch.accelerator.current_accelerator(check_available=True) or "cpu"
        if dtype is None and not live:
            dtype = torch.float32
        rounded = dtype not in (None, torch.float32)
        hashes = (weights_hash(loaded.model), encoder_hash(loaded.model)) if rounded else (None, None)
        where = device_named(device)
        refuse_absent_type(dtype, where)
        model = loaded.model.to(where)
        if dtype is not None:
            model.cast(dtype)
        if channels_last:
            model = model.to(memory_format=torch.channels_last)
        if compile:
            require_compiler(next(model.parameters()).device)
            compile_for_any_batch(compiled_parts(model))
        return LatentCodec(model, loaded.scale, loaded.source, weights_hash=hashes[0], encoder_hash=hashes[1])

    @staticmethod
    def from_pretrained(
        ref: str | Path | AutoencoderKL, *, torch_dtype: torch.dtype | str | None = None, **options: Any
    ) -> LatentCodec:
        """`load` under the name that diffusers gives it; arguments of diffusers that it has no use for are refused.

        torch_dtype: what `load` calls dtype; either may be given. Without both, float32.
        options: those of `load`: device, dtype, variant, revision, subfolder, channels_last, compile.

        >>> LatentCodec.from_pretrained("codec", device="cpu", torch_dtype=torch.float16).dtype
        torch.float16
        """
        refuse_unknown(options, LatentCodec.load)
        if torch_dtype is not None and options.get("dtype") is not None:
            raise UserError("dtype and torch_dtype", "give one of them: they are the same")
        return LatentCodec.load(ref, **(options if torch_dtype is None else {**options, "dtype": torch_dtype}))

    def to(self, *given: object, device: object = None, dtype: object = None) -> LatentCodec:
        """Moves the codec to a device and casts it to a type, in place as a module of torch, and returns it.

        Its hashes stay those of the weights before they were rounded. An AutoencoderKL that shared its tensors with
        the codec keeps its own. Raises UserError for what is no device or floating type.

        given: a device, a type, or both, as torch names them: `codec.to("cuda", "bfloat16")`.

        >>> codec = LatentCodec.load("codec", device="cpu")
        >>> codec.to("bfloat16").dtype
        torch.bfloat16
        """
        where, kind = device_and_type(given, device, dtype)
        refuse_absent_type(kind or self.dtype, where or self.device)
        if kind is not None and kind != self.dtype:
            _ = self.hashes  # computed before the weights are rounded
            self.model.cast(kind)
        self.model.to(where)
        return self

    def __repr__(self) -> str:
        config, scale = self.model.config, "no scale" if self.scale is None else f"scale {self.scale.formula()}"
        shape = f"f{self.factor}, {self.latent_channels} channels"
        kinds = f"network {config.kind}, bottleneck {config.bottleneck.kind}"
        return (
            f"LatentCodec: {shape}, {kinds}, {self.precision} on {self.device}\n"
            f"  {scale}, loaded from {self.source.in_words()}"
        )

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
        check_images(images, self.model.config.in_channels, self._warn)
        padded = pad_to_multiple(images, self.factor) if pad else images
        held = self._copy_in_own_type(padded) + (0 if padded is images else padded.nbytes)
        network = partial(passes.encode, max_memory=max_memory, held=held)
        return run_finite(network, self.model, padded, self.device, "posteriors")

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

    def decode(self, latents: Tensor, *, size: tuple[int, ...] | None = None, max_memory: int | None = None) -> Tensor:
        """(B, c, h, w), scaled -> (B, C, h*f, w*f), or cropped to `size` = (H, W). Raises NonFiniteError.

        size: of the images that were encoded, whose padding is then cut off. Raises UserError for another than two
        numbers, and for a larger one than the latents decode to.
        max_memory: bytes that the process may grow by, the result included; up to 32 MiB come on top of it. The network
        is then evaluated in pieces, as it is for pictures too large for the device anyway. Raises UserError for a bound
        that cannot be kept, and names the lowest that can.

        >>> codec = LatentCodec.load("codec", device="cpu")
        >>> codec.decode(torch.zeros(1, 4, 16, 24), size=(61, 95), max_memory=2**24).shape
        torch.Size([1, 3, 61, 95])
        """
        check_latents(latents, self.latent_channels)
        return self.decode_raw(self._unscaled(at_least_float32(latents)), size=size, max_memory=max_memory)

    def reconstruct(
        self,
        images: Tensor,
        *,
        sample: bool = False,
        generator: torch.Generator | None = None,
        max_memory: int | None = None,
    ) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W): encodes and decodes. `roundtrip` is another name of it.

        The scale, which decoding undoes, is left out. So a codec without one works, too, and with one the result is
        that of `decode(encode(images), size=...)` up to rounding. Raises as `encode` and `decode`.

        sample, generator, max_memory: as in `encode`.

        >>> codec = LatentCodec.load("codec", device="cpu")
        >>> codec.roundtrip(torch.zeros(1, 3, 50, 70)).shape
        torch.Size([1, 3, 50, 70])
        """
        z = self.draw(self.moments(images, max_memory=max_memory), sample=sample, generator=generator)
        return self.decode_raw(z, size=(images.shape[2], images.shape[3]), max_memory=max_memory)

    roundtrip = reconstruct

    def decode_raw(self, z: Tensor, *, size: tuple[int, ...] | None = None, max_memory: int | None = None) -> Tensor:
        """Decodes raw latents, such as the mean in `moments`; otherwise like `decode`."""
        check_latents(z, self.latent_channels)
        if size is not None:  # before the decoder runs
            check_size(size, z.shape[2] * self.factor, z.shape[3] * self.factor)
        held = 2 * z.nbytes + self._copy_in_own_type(z)  # latents whose scale was removed, on the way and after it
        network = partial(passes.decode, max_memory=max_memory, held=held)
        images, broken = run_finite(network, self.model, z, self.device, "images")
        if broken:
            raise NonFiniteError("the image", broken)
        return images if size is None else crop_to(images, size)

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

    def push_to_hub(
        self, hub_id: str, *, private: bool | None = None, token: str | None = None, licence: str | None = None
    ) -> str:
        """Exports the codec with its model card to the model `hub_id` on the Hugging Face Hub.

        Returns the address of the commit. Raises UserError for a codec without a scale, or in a half type.

        private: whether a new model is private; None follows the account's setting.
        token: None uses HF_TOKEN, or the token of `hf auth login`.
        licence: of the weights, an SPDX id for the card; None leaves the one that the model's card there states.
        """
        with TemporaryDirectory() as folder:
            self._export(Path(folder, "export"), licence, f"codec.push_to_hub({hub_id!r})", hub_id)
            return hub.push(Path(folder, "export"), hub_id, private=private, token=token)

    def save_pretrained(self, folder: str | Path, *, licence: str | None = None) -> None:
        """Exports the codec with its model card to a folder, which `load` and AutoencoderKL.from_pretrained read.

        Replaces an earlier export there. Raises UserError for a codec without a scale or in a half type, and for a
        folder that holds anything else.

        licence: of the weights, an SPDX id for the card; None states what the card that is there says, or nothing.

        >>> LatentCodec.load("codec", device="cpu").save_pretrained("copy")
        """
        self._export(Path(folder), licence, f"codec.save_pretrained({str(folder)!r})", None)

    def _export(self, folder: Path, licence: str | None, command: str, hub_id: str | None) -> None:
        if self.dtype in (torch.bfloat16, torch.float16):
            raise UserError(f"weights rounded to {self.precision}", "load the codec in float32 to export it")
        loaded = LoadedModel(self.model, self.scale, self.source)
        statistics = statistics_of(self.source, self.weights_hash)
        for note in export_model(loaded, folder, statistics, licence=licence, command=command, hub_id=hub_id):
            logger.warning(note)

    @exact_float32()
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

    def _copy_in_own_type(self, x: Tensor) -> int:
        """Bytes of the copy of x that the network runs on, where it is one."""
        return 0 if x.dtype == self.dtype else x.numel() * self.dtype.itemsize

    def _warn(self, kind: str, message: str) -> None:
        """Warns once for each kind of message."""
        if kind not in self._warned:
            self._warned.add(kind)
            logger.warning("%s", message)

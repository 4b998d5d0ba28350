"""What training and the codec ask of any network: an encoder, a bottleneck and a decoder in one module."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, NamedTuple

import torch
from pydantic import Field, SerializeAsAny
from torch import Tensor, nn

from ldm_vae.bottlenecks.base import Bottleneck, BottleneckConfig, Latent
from ldm_vae.bottlenecks.gaussian import GaussianConfig
from ldm_vae.errors import UserError
from ldm_vae.networks.likelihood import Likelihood, PlainPicture
from ldm_vae.nn.last_layer import LastLayer
from ldm_vae.noise import Noise
from ldm_vae.parts import BOTTLENECKS
from ldm_vae.precision import at_least_float32, without_autocast
from ldm_vae.recipe import Config
from ldm_vae.views.view import View

MAX_WIDTH = 2**14  # channels of a layer: published codecs have at most 2,048; one convolution of so many takes 10 GB
Channels = Annotated[int, Field(gt=0, le=MAX_WIDTH)]
HEADS = "heads."  # the names of tensors that only the losses need begin with this


class NetworkConfig(Config):
    """The fields that every network has."""

    train_parts: ClassVar[tuple[str, ...]] = ()  # names of parts that can be trained alone (`Network.parts`)

    kind: str
    """The kind of network."""

    in_channels: Channels = 3
    """Channels of the image."""

    out_channels: Channels = 3
    """Channels of the reconstruction."""

    latent_channels: Channels = 4
    """Channels of the latent."""

    gradient_checkpointing: bool = False
    """Computes each level a second time in the backward pass instead of keeping its activations: less memory, more
    time."""

    bottleneck: Annotated[SerializeAsAny[BottleneckConfig], BOTTLENECKS] = GaussianConfig()
    """What stands between encoder and decoder."""

    @property
    @abstractmethod
    def factor(self) -> int:
        """f: pixels per latent position along each side."""


class Encoded(NamedTuple):
    """What `Network.run_encoder` returns.

    hidden: (B, width * c, *positions), the input of the bottleneck.
    last: input and output of the encoder's last layer, which is `Network.anchors["encoder"]`.
    """

    hidden: Tensor
    last: LastLayer


class Decoded(NamedTuple):
    """What `Network.run_decoder` returns.

    parameters: (B, P, H, W), parameters of the distribution of the pixels.
    below: input of the decoder's last layer, which is `Network.anchors["decoder"]`.
    """

    parameters: Tensor
    below: Tensor


@dataclass(frozen=True)
class Anchor:
    """A last layer. The gradients of losses are compared at its weight (`losses/adaptive.py`).

    layer: any module.
    weight: name of the weight among the layer's parameters.
    """

    layer: nn.Module
    weight: str = "weight"


@dataclass(frozen=True)
class Output:
    """Everything that losses may need from one forward pass. B is the number of images times samples.

    parameters: (B, P, H, W), output of the decoder: parameters of the distribution of the pixels.
    target: (B, C, H, W), the image, or its view.
    latent: (B, c, h, w), input of the decoder.
    posterior: output of the bottleneck.
    below: input of the last layer of "encoder" and "decoder".
    above: output of the last layer of "encoder".
    heads: output of each head by its name, such as a learned log-variance.
    likelihood: distribution of the pixels, whose parameters are `parameters`.
    """

    parameters: Tensor
    target: Tensor
    latent: Tensor
    posterior: Latent
    below: Mapping[str, Tensor]
    above: Mapping[str, Tensor]
    heads: Mapping[str, Tensor]
    likelihood: Likelihood

    @property
    def reconstruction(self) -> Tensor:
        """(B, C, H, W), the picture: the mean of the pixels' distribution."""
        return self.likelihood.mean(self.parameters)


def refuse_no_codec(network: Network, name: str) -> None:
    """Raises UserError for a network that is no codec of images of any size.

    name: what the user called it.
    """
    if not network.codec:
        what = f"{name} is a network of kind {network.config.kind}"
        raise UserError(what, "it needs labels or one size of image, and is no codec of images of any size")


class Network(nn.Module, ABC):
    """An autoencoder.

    A subclass defines how to encode and decode; the forward pass of training is written here, once for all networks.

    codec: whether the network takes images of any size and no label, so that `LatentCodec` can use it.
    decoder_names: how the names of exported weights begin that latents do not depend on. Empty: all may matter.
    likelihood: how the decoder's output is read.
    """

    codec: ClassVar[bool] = True
    decoder_names: ClassVar[tuple[str, ...]] = ()
    likelihood: Likelihood = PlainPicture()

    def __init__(self, config: NetworkConfig, heads: Mapping[str, nn.Module] | None = None) -> None:
        """heads: modules (Encoded, Latent) -> Tensor that the losses need. They are trained too, and never exported."""
        super().__init__()
        self.config = config
        self.heads = nn.ModuleDict(dict(heads or {}))
        bottleneck: Bottleneck = BOTTLENECKS.part_of(config.bottleneck)(config.bottleneck)
        self.bottleneck = bottleneck

    def observe(self, image: Tensor, noise: Noise | None = None) -> Tensor:
        """(B, C, H, W) -> what the encoder sees, and the decoder is to reconstruct: of most networks the image.

        noise: for data that are drawn from the image, such as pixels that are on or off; None draws nothing.
        """
        return image

    @abstractmethod
    def run_encoder(self, image: Tensor, label: Tensor | None = None) -> Encoded:
        """(B, C, H, W) in [-1, 1], H and W multiples of f -> the bottleneck's input.

        label: for networks with a condition; others ignore it.
        """

    @abstractmethod
    def run_decoder(self, z: Tensor, label: Tensor | None = None, noise: Noise | None = None) -> Decoded:
        """(B, c, h, w), raw -> parameters of the pixels' distribution.

        label: for networks with a condition; others ignore it.
        noise: for decoders that draw random numbers, such as a diffusion decoder; others ignore it.
        """

    @property
    @abstractmethod
    def anchors(self) -> Mapping[str, Anchor]:
        """The last layers: "encoder" and "decoder"."""

    def parts(self, name: str) -> Sequence[nn.Module]:
        """The modules that `model.train: name` trains, beside the heads. `config.train_parts` lists the names."""
        raise UserError(f"model.train: {name}", f"networks of kind {self.config.kind} train all their parts")

    def encode(self, image: Tensor) -> Tensor:
        """(B, C, H, W) in [-1, 1], H and W multiples of f -> (B, width * c, H/f, W/f), the bottleneck's input."""
        return self.run_encoder(image).hidden

    def decode(self, z: Tensor) -> Tensor:
        """(B, c, h, w), raw -> (B, C, h*f, w*f), the picture."""
        return self.likelihood.mean(self.run_decoder(z).parameters)

    def forward(
        self,
        image: Tensor,
        *,
        noise: Noise | None = None,
        label: Tensor | None = None,
        samples: int = 1,
        view: View | None = None,
    ) -> Output:
        """The forward pass of training. It is one call, so that the prepared module can synchronise all gradients.

        image: (B, C, H, W) in [-1, 1].
        noise: draws the posterior's sample and any other random number; None takes the mode.
        label: for networks with a condition.
        samples: number of draws from the posterior for each image, one after the other along the batch.
        view: the decoder gets the latent's view, and the image's view is the target.
        """
        target = self.observe(image, noise)
        encoded = self.run_encoder(target, label)
        hidden = encoded.hidden
        if samples > 1:
            hidden, target = hidden.repeat_interleave(samples, dim=0), target.repeat_interleave(samples, dim=0)
            label = None if label is None else label.repeat_interleave(samples, dim=0)
        with without_autocast(hidden.device):
            posterior = self.bottleneck(at_least_float32(hidden), noise)
        heads = {name: head(encoded, posterior) for name, head in self.heads.items()}
        latent = posterior.z
        if view is not None:
            latent, target = view.latent(latent), view.image(target)
        decoded = self.run_decoder(latent, label, noise)
        return Output(
            parameters=decoded.parameters,
            target=target,
            latent=latent,
            posterior=posterior,
            below={"encoder": encoded.last.below, "decoder": decoded.below},
            above={"encoder": encoded.last.output},
            heads=heads,
            likelihood=self.likelihood,
        )

    @property
    def dtype(self) -> torch.dtype:
        """The type of encoder and decoder."""
        apart = {id(parameter) for part in (self.bottleneck, self.heads) for parameter in part.parameters()}
        return next(parameter.dtype for parameter in self.parameters() if id(parameter) not in apart)

    def cast(self, dtype: torch.dtype) -> None:
        """Encoder and decoder compute in another type; the bottleneck stays in at least float32."""
        for part in self.children():
            if part is not self.bottleneck:
                part.to(dtype)
        self.bottleneck.to(torch.promote_types(dtype, torch.float32))

    def latent_shape(self, image: Tensor) -> tuple[int, int, int, int]:
        """Shape of z for a batch of images (B, C, H, W). Raises UserError where H or W is no multiple of f."""
        batch, _, height, width = image.shape
        factor = self.config.factor
        if height % factor or width % factor:
            raise UserError(
                f"training images of {height}x{width} pixels, which is no multiple of f = {factor}",
                "set data.image.crop to a multiple",
            )
        return batch, self.config.latent_channels, height // factor, width // factor

    def exported_state(self) -> dict[str, Tensor]:
        """The state dict without the heads."""
        return {name: value for name, value in self.state_dict().items() if not name.startswith(HEADS)}

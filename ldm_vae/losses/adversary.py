"""What every adversary does: a second network with a loss of its own, trained beside the autoencoder.

Its judgement can be a term of the autoencoder's own loss: then the autoencoder is said to feel it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from ldm_vae.networks.network import NetworkConfig, Output
from ldm_vae.noise import Noise
from ldm_vae.recipe import Config

Pair = tuple[Tensor, ...]  # what an adversary learns from, such as images and reconstructions; detached


class AdversaryConfig(Config):
    """The fields that every adversary has."""

    kind: str
    """The kind of adversary."""

    order: Literal["shared", "compvis"] = "shared"
    """What the adversary learns from. shared: the reconstructions of the autoencoder's own update. compvis: new ones,
    made after that update, for one more forward pass. It repeats the noise of the step; CompVis' own code draws new
    noise there."""

    @property
    def smallest_image(self) -> int:
        """Pixels along the shorter side of the smallest image that the network can judge."""
        return 1

    @property
    def sees_batches(self) -> bool:
        """Whether the output for an image depends on the other images in the batch.

        Then an adversary judges images and reconstructions in separate calls.
        """
        return False


class Adversary(ABC):
    """The rules of one adversary: which network, what it learns from, and the autoencoder's loss. Holds no network.

    name: name of the network's weights in checkpoints.
    felt: where the gradient of the autoencoder's loss enters. pixels: at the reconstruction. latent: anywhere else.
    balance: the last layer (anchor) at which this gradient is scaled to the length of the reconstruction's; None for a
    fixed weight.
    """

    name: str
    felt: Literal["pixels", "latent"]
    balance: Literal["encoder", "decoder"] | None

    @abstractmethod
    def build(self, model: NetworkConfig) -> nn.Module:
        """A new network, with first weights from torch's generator."""

    @abstractmethod
    def learns(self, step: int) -> bool:
        """Whether the network is trained in this step."""

    @abstractmethod
    def weight(self, step: int) -> float:
        """The weight of `term` in the autoencoder's loss in this step; with 0 it is not computed."""

    @abstractmethod
    def term(self, network: nn.Module, output: Output) -> Tensor:
        """The term of the autoencoder's loss, (B,).

        network: the adversary's network, its parameters frozen.
        """

    @abstractmethod
    def pair(self, output: Output, noise: Noise) -> Pair:
        """What the network learns from, detached."""

    @abstractmethod
    def loss(self, network: nn.Module, pair: Pair, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The network's own loss, a scalar, and further values for the log, by name.

        network: the adversary's network as accelerate has prepared it, so that gradients are synchronised.
        """

    def title(self, quantity: str) -> str:
        """The name of a quantity in the log: plain for the discriminator, `quantity/name` for others."""
        return quantity if self.name == "discriminator" else f"{quantity}/{self.name}"

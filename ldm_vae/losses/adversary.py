"""A second player: a network that is trained along, by a loss of its own, and that the autoencoder may feel."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from ldm_vae.networks.network import NetworkConfig, Output
from ldm_vae.noise import Noise
from ldm_vae.recipe import Config

Pair = tuple[Tensor, ...]  # what an adversary learns from, outside of any graph


class AdversaryConfig(Config):
    """What every adversary is configured by."""

    kind: str
    """The kind of adversary."""

    order: Literal["shared", "compvis"] = "shared"
    """What the adversary learns from. shared: the reconstructions of the autoencoder's own update. compvis: new ones,
    made after that update, for one more forward pass."""

    @property
    def smallest_image(self) -> int:
        """Pixels along the shorter side of the smallest image that it can judge."""
        return 1

    @property
    def sees_batches(self) -> bool:
        """Whether what it says of an image depends on the others that are judged with it."""
        return False


class Adversary(ABC):
    """The rules of one game: who learns from what, and what the autoencoder feels of it. Holds no network.

    name: of its weights in checkpoints.
    felt: where the autoencoder feels it. pixels: in the reconstruction. latent: anywhere else.
    balance: the anchor at whose weight its gradient is made as long as the reconstruction's; None for a fixed weight.
    """

    name: str
    felt: Literal["pixels", "latent"]
    balance: Literal["encoder", "decoder"] | None

    @abstractmethod
    def build(self, model: NetworkConfig) -> nn.Module:
        """Its network, with first weights from torch's generator."""

    @abstractmethod
    def learns(self, step: int) -> bool:
        """Whether its network is trained in this step."""

    @abstractmethod
    def weight(self, step: int) -> float:
        """What the autoencoder's loss is multiplied by in this step; 0: it is not computed."""

    @abstractmethod
    def term(self, network: nn.Module, output: Output) -> Tensor:
        """The autoencoder's loss, (B,).

        network: with its own parameters frozen.
        """

    @abstractmethod
    def pair(self, output: Output, noise: Noise) -> Pair:
        """What its network learns from, detached."""

    @abstractmethod
    def loss(self, network: nn.Module, pair: Pair, step: int) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Its network's own loss, a scalar, and what the log takes beside it, by name.

        network: as it was prepared, so that gradients are synchronised.
        """

    def title(self, quantity: str) -> str:
        """The name of a quantity in the log: plain for the discriminator, `quantity/name` for others."""
        return quantity if self.name == "discriminator" else f"{quantity}/{self.name}"

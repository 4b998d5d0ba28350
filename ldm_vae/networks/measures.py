"""What validation measures of networks that are no codecs of images: their kind says what (`Kind.measures`)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from ldm_vae.data.stream.batch import Batch
from ldm_vae.networks.network import Network


class Measures(ABC):
    """Measures of one network, in evaluation mode.

    names: what is shown at each validation, in this order, of what `summary` gives.
    """

    names: Sequence[str]

    def __init__(self, model: Network) -> None:
        self.model = model

    @abstractmethod
    def sums(self, batch: Batch | None) -> dict[str, Tensor]:
        """What is summed over the images, by name, in float64 on the CPU. "images" is their number.

        batch: on the network's device; None gives the zeros that sums begin with.
        """

    @abstractmethod
    def summary(self, sums: Mapping[str, Tensor]) -> dict[str, float]:
        """Values by name, from the sums over at least one image."""

    @abstractmethod
    def picture(self, images: Sequence[Tensor]) -> Image.Image:
        """What the network makes of fixed images, each (1, C, H, W), and what it draws from its prior."""

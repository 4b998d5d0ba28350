"""Networks for the tests of piecewise evaluation, and a count of the memory that tensors take."""

import weakref
from collections.abc import Callable, Iterator
from itertools import cycle, product
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ldm_vae.networks.kl import Autoencoder, AutoencoderConfig
from tests.architectures import WIDTHS, name, small_config


def architectures() -> Iterator[AutoencoderConfig]:
    """Every f with all eight of the on/off choices; channel counts and depths take turns."""
    image, latent, layers = cycle((1, 3, 4, 12)), cycle((3, 4, 8, 16, 32)), cycle((1, 2, 1))
    for f, (quant, middle, levels) in product(WIDTHS, product((True, False), repeat=3)):
        yield small_config(f, next(image), next(latent), next(layers), quant=quant, middle=middle, levels=levels)


def build(config: AutoencoderConfig) -> Autoencoder:
    """Random weights, with norms and biases away from their trivial initial values."""
    torch.manual_seed(0)
    model = Autoencoder(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def examples() -> Iterator[Any]:
    """Of every f, the network with all parts and the one with none are quick to test; all others are slow tests."""
    for config in architectures():
        parts = {config.quant_conv, config.mid_attention, bool(config.attention_levels)}
        yield pytest.param(config, id=name(config), marks=() if len(parts) == 1 else pytest.mark.slow)


@pytest.fixture(params=list(examples()))
def architecture(request: pytest.FixtureRequest) -> Autoencoder:
    return build(request.param)


@pytest.fixture
def network() -> Callable[..., Autoencoder]:
    """f = 4 with attention in the middle; keywords change the configuration."""

    def make(**changes: Any) -> Autoencoder:
        small = dict(block_out_channels=(8, 8, 16), norm_groups=4, layers_per_block=1)
        return build(AutoencoderConfig(**{**small, **changes}))

    return make


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors made while it is on: `now`, and their largest number at once, `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        before = {id(tensor.untyped_storage()) for tensor in (*args, *kwargs.values()) if isinstance(tensor, Tensor)}
        result = func(*args, **kwargs)
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if id(storage) not in self._known | before:
                    self._add(storage)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


@pytest.fixture
def live_bytes() -> Callable[[], LiveBytes]:
    return LiveBytes

"""When pictures run as a whole batch, as fewer at a time, or in pieces."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm_vae.networks.kl import Autoencoder
from ldm_vae.piecewise import passes
from ldm_vae.piecewise.chains.kl import decoder_steps, encoder_steps
from ldm_vae.sparing import NoRoom, sparing
from tests.tolerance import assert_as_exact, double

pytestmark = pytest.mark.numerical

Way = tuple[Callable[..., Tensor], Callable[..., Tensor], int]  # a way, the network's own pass, bytes of a picture


def pictures(batch: int = 4) -> Tensor:
    return torch.rand(batch, 3, 64, 96, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0


def ways(model: Autoencoder, batch: int = 4) -> list[tuple[Way, Tensor]]:
    """Both ways with their input."""
    z = torch.randn(batch, 4, 16, 24, generator=torch.Generator().manual_seed(0))
    return [
        ((passes.encode, model.encode, passes.whole_bytes(encoder_steps(model, 64, 96), 4)), pictures(batch)),
        ((passes.decode, model.decode, passes.whole_bytes(decoder_steps(model, 16, 24), 4)), z),
    ]


def seen(model: Autoencoder) -> list[int]:
    """Pictures in each of the network's own passes from now on."""
    batches: list[int] = []
    for part in (model.encoder, model.decoder):
        part.register_forward_hook(lambda _module, given, _result: batches.append(len(given[0])))
    return batches


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"block_out_channels": (32, 64, 64), "mid_attention": False},
        {"block_out_channels": (16, 8, 16), "layers_per_block": 2, "attention_levels": (0, 2)},
        {"block_out_channels": (16, 32, 64), "layers_per_block": 3},
    ],
)
def test_bytes_of_a_whole_pass_are_those_that_it_takes(
    network: Callable[..., Autoencoder], live_bytes: Callable[[], Any], shape: dict[str, Any]
) -> None:
    model = network(**shape)
    for (_, whole, counted), x in ways(model, batch=2):
        with live_bytes() as live, torch.no_grad():
            whole(x)
        # Beside the largest step: the latent in its three forms, and statistics of norms and attention.
        assert 0.9 * live.peak <= 2 * counted <= 1.02 * live.peak


@pytest.mark.parametrize(("room", "batches"), [(4.0, [4]), (3.9, [3, 1]), (2.0, [2, 2]), (1.5, [1, 1, 1, 1])])
def test_fewer_pictures_at_a_time_where_memory_is_short(
    network: Callable[..., Autoencoder], monkeypatch: pytest.MonkeyPatch, room: float, batches: list[int]
) -> None:
    model = network()
    for (run, whole, counted), x in ways(model):
        exact = getattr(double(model), whole.__name__)(x.double())
        monkeypatch.setattr(passes, "WHOLE_ON_CPU", int(room * counted))
        with torch.no_grad():
            expected, found = whole(x), seen(model)
            result = run(model, x)
        assert found == batches
        assert_as_exact(result, expected, exact)  # convolutions of another batch sum in another order


def test_pieces_where_not_one_whole_picture_has_room(
    network: Callable[..., Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = network()
    monkeypatch.setattr("ldm_vae.piecewise.plan.STRIP_BYTES", 2**14)  # so that these small pictures are cut
    for (run, whole, counted), x in ways(model):
        exact = getattr(double(model), whole.__name__)(x.double())
        monkeypatch.setattr(passes, "WHOLE_ON_CPU", counted - 1)
        with torch.no_grad():
            expected, found = whole(x), seen(model)
            result = run(model, x)
        assert found == []
        assert_as_exact(result, expected, exact)


def test_what_counts_is_bytes(network: Callable[..., Autoencoder], monkeypatch: pytest.MonkeyPatch) -> None:
    """A half type takes half as much: so many more pictures run at once."""
    model = network()
    (run, _, counted), x = ways(model)[1]
    monkeypatch.setattr(passes, "WHOLE_ON_CPU", 2 * counted)
    model.bfloat16()
    found = seen(model)
    with torch.no_grad():
        run(model, x.bfloat16())
    assert found == [4]


def test_a_share_of_the_whole_is_kept_to_and_nothing_gives_the_least(
    network: Callable[..., Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, bounds = network(), list[int]()
    for name in ("encode_pieces", "decode_pieces"):
        pieces = getattr(passes, name)

        def spied(*args: Any, pieces: Any = pieces, max_memory: int, **kwargs: Any) -> Any:
            bounds.append(max_memory)
            result, plan = pieces(*args, max_memory=max_memory, **kwargs)
            assert plan.working_bytes + result.nbytes <= max_memory
            return result, plan

        monkeypatch.setattr(passes, name, spied)
    for (run, whole, counted), x in ways(model, batch=1):
        exact = getattr(double(model), whole.__name__)(x.double())
        with torch.no_grad():
            expected = whole(x)
        for share, tried in ((0.5, 1), (0.0, 2)):  # nothing is refused, and the refusal names the least
            bounds.clear()
            own = seen(model)
            with sparing(share):
                result = run(model, x)
            assert own == [] and len(bounds) == tried and bounds[0] == int(share * counted)
            assert 0 < bounds[-1] <= 0.5 * counted
            assert_as_exact(result, expected, exact)


def test_a_share_that_the_device_has_no_room_for_is_refused(
    network: Callable[..., Autoencoder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(passes, "free_memory", lambda device: 1000)
    with (
        sparing(0.5),
        pytest.raises(NoRoom, match="1,000 bytes of free memory on cpu: encoding 64 x 96 pixels takes"),
    ):
        passes.encode(network(), pictures(1))
    monkeypatch.setattr(passes, "has_chains", lambda model: False)
    with sparing(0.5), pytest.raises(NoRoom, match="a network of kind kl runs as a whole"):
        passes.encode(network(), pictures(1))

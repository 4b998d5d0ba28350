"""What torch.compile makes of a run: encoder, decoder, adversaries and the networks of losses, each as one graph."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ldm_vae.networks.compiled import Backend, compiled_parts
from train.recipe import Recipe
from train.state import Run


def compile_run(run: Run, frozen: Mapping[str, nn.Module], recipe: Recipe, backend: Backend = "inductor") -> None:
    """Compiles the networks of a step in place, where the recipe asks for it. They are compiled when first called.

    The averaged weights stay as they are: they validate pictures of many sizes, each of which would compile anew.

    frozen: the networks that `build_frozen` returned.
    backend: of torch.compile.
    """
    if not recipe.compile:
        return
    from torch._dynamo import config as tracing  # takes a second
    from torch._functorch import config as graphs

    # Adaptive weights may differentiate a graph twice, which must not give away the memory of its inputs then.
    graphs.donated_buffer = False
    # DistributedDataParallel sends gradients while others are computed, for which it splits graphs. Not every version
    # of PyTorch can split one that holds checkpoints: there, those of the encoder or the decoder go all at once.
    tracing.optimize_ddp = not recipe.model.gradient_checkpointing
    critics = [run.accelerator.unwrap_model(critic) for critic in run.critics.values()]
    # With a crop all batches have one shape, and a graph of another one is another call's, as the discriminator's two.
    dynamic = False if recipe.data.image.crop is not None else None
    for module in (*compiled_parts(run.autoencoder), *critics, *frozen.values()):
        module.compile(backend=backend, dynamic=dynamic)

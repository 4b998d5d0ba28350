"""Adam for the autoencoder and the adversaries: one configuration, one builder, one way to apply an update."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from ldm_vae.recipe import Config
from ldm_vae.schedules import Decay, Schedule, warmup_decay

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimizerConfig(Config):
    """Adam for the autoencoder and for the discriminator."""

    kind: Literal["adam", "adamw"] = "adam"
    """adamw is Adam with a weight decay that is decoupled from the gradient."""

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0e-4
    """Learning rate of the autoencoder; it is used as it is, never multiplied by batch or processes."""

    discriminator_lr: Annotated[float, Field(gt=0)] | None = None
    """Learning rate of the discriminator; null: the autoencoder's."""

    betas: tuple[Beta, Beta] = (0.5, 0.9)
    """Decay of the mean and of the mean square of gradients, per optimizer step."""

    eps: Annotated[float, Field(gt=0)] = 1.0e-8
    """Added to the root of the mean square."""

    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """For adamw: share of a weight that is taken away per step, times the learning rate."""

    warmup: Annotated[int, Field(ge=0)] = 0
    """Optimizer steps over which the learning rate rises linearly to its full value."""

    decay: Decay = "constant"
    """Shape of the learning rate after the warm-up; linear and cosine come down to `final` at the last step."""

    final: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Learning rate of the last step, as a share of the full one."""

    clip: Annotated[float, Field(gt=0)] | None = None
    """Largest global L2 norm of a gradient, in units of the summed loss: a longer gradient is scaled down to it. null:
    no clipping."""

    accumulation: Annotated[int, Field(gt=0)] = 1
    """Micro-batches per optimizer step on each rank."""

    patience: Annotated[int, Field(gt=0)] = 10
    """Number of optimizer steps in a row with a non-finite gradient after which the run stops."""


class Update:
    """A network's optimizer with its learning rate and clipping.

    Where the gradient is not finite, the device skips the step: fused Adam reads the flag `found_inf`, which otherwise
    gradient scalers set. So nothing waits for the host.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer, lr: Schedule, clip: float | None) -> None:
        self.names = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = optimizer
        self.lr = lr
        self.clip = clip
        self.begun = -1  # the latest step that was begun to be applied

    def gradient_norm(self) -> Tensor:
        """Global L2 norm of the accumulated gradient, a scalar. All ranks have the same, since they share gradients."""
        return nn.utils.get_total_norm([p.grad for p in self.parameters if p.grad is not None])

    def apply(self, norm: Tensor, finite: Tensor, step: int) -> None:
        """Takes one optimizer step, or none where `finite` is false; then drops the accumulated gradient."""
        self.begun = step
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr(step)
        if self.clip is not None:
            nn.utils.clip_grads_with_norm_(self.parameters, self.clip, norm)
        self.optimizer.found_inf = (~finite).to(torch.float32)  # type: ignore[attr-defined]  # read by the fused kernel
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """The optimizer's tensors by "moment/parameter", for a checkpoint; empty before the first step."""
        per_parameter = self.optimizer.state_dict()["state"]
        return {
            f"{moment}/{self.names[index]}": value
            for index, moments in per_parameter.items()
            for moment, value in moments.items()
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Restores what `state` returned."""
        per_parameter: dict[int, dict[str, Tensor]] = {}
        for name, value in tensors.items():
            moment, _, parameter = name.partition("/")
            per_parameter.setdefault(self.names.index(parameter), {})[moment] = value
        self.optimizer.load_state_dict(
            {"state": per_parameter, "param_groups": self.optimizer.state_dict()["param_groups"]}
        )


def build_update(module: nn.Module, config: OptimizerConfig, lr: float, steps: int) -> Update:
    """Fused Adam or AdamW over the trainable parameters of a module."""
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if config.kind == "adam":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(
            parameters, lr=lr, betas=config.betas, eps=config.eps, fused=True
        )
    else:
        optimizer = torch.optim.AdamW(
            parameters, lr=lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
        )

    def schedule(step: int) -> float:
        factor = warmup_decay(step, warmup=config.warmup, decay=config.decay, final=config.final, steps=steps)
        return lr * factor

    return Update(module, optimizer, schedule, config.clip)

"""Warnings about a run that goes wrong while its loss looks fine: what is wrong, and what to try.

They are computed from the rows of the log, on the host. The thresholds are the constants at the top.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping

import torch
from accelerate import Accelerator

from ldm_vae.waiting import chosen, is_busy

logger = logging.getLogger("train")

# Losses whose jumps are worth a warning. The others come near 0 in a healthy run, so that any ratio to their mean is
# large: the discriminator's where it wins, the generator's (a mean logit), the total where a log-variance is learned.
# Logits and gradients have limits of their own.
LOSSES = ("pixel", "perceptual", "rate")


SPIKE = 5.0  # highest ratio of a loss to its running mean
GRADIENT_RATIO = 100.0  # highest ratio of a gradient norm to its running mean, or of the mean to the norm
MEMORY = 0.9  # share of a running mean that each row keeps
PATIENCE = 5  # number of rows before a running mean is used
ACCURACY = 0.99  # share of patches that the discriminator judges rightly: above, it has won
LOGITS = 20.0  # highest absolute mean logit
ACTIVE_CHANNELS_SHARE = 0.5  # lowest share of the latent channels that carry information
BROKEN_SHARE = 0.01  # highest share of the images that cannot be used
DATA_WAIT = 0.1  # highest share of the time in which the device waits for images
SAME_RECONSTRUCTION = 1e-3  # lowest standard deviation of reconstructions over images, range [-1, 1]


class Health:
    """Compares rows of the log with the thresholds and with running means; the main process warns."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.accelerator = accelerator
        self.means: dict[str, tuple[float, int]] = {}  # name -> running mean, rows seen
        self.told: dict[str, float] = {}  # images that are broken -> their share when it was told last
        self.told_of_others = False  # that other processes slow the run
        self.waits = 0  # rows, the latest ones, in which the device waited for images; -1 once that was told

    def judge(self, step: int, row: Mapping[str, float], example: str = "") -> list[str]:
        """The warnings about a row of the log, also sent to the log of the main process.

        example: an image that the row could not count, and why.
        """
        warnings = [*self._jumps(row), *self._discriminator(row), *self._latents(row), *self._broken(row, example)]
        warnings += [*self._machine(row), *self._data(row)]
        for warning in warnings if self.accelerator.is_main_process else []:
            logger.warning("step %d: %s", step, warning)
        return warnings

    def _jumps(self, row: Mapping[str, float]) -> list[str]:
        warnings = []
        for name, value in row.items():
            gradient = name.startswith("gradient_norm/")
            if not (gradient or name in LOSSES) or not math.isfinite(value):
                continue
            mean, seen = self.means.get(name, (value, 0))
            if seen >= PATIENCE and mean > 0:
                ratio = value / mean
                if gradient and not 1 / GRADIENT_RATIO < ratio < GRADIENT_RATIO:
                    warnings.append(
                        f"{name} is {value:.3g}, {ratio:.3g} times its running mean; "
                        "set optimizer.clip or lower optimizer.lr"
                    )
                elif not gradient and ratio > SPIKE:
                    warnings.append(
                        f"{name} jumped to {value:.3g}, {ratio:.3g} times its running mean; "
                        "lower optimizer.lr, lengthen optimizer.warmup, or set optimizer.clip"
                    )
            self.means[name] = (MEMORY * mean + (1 - MEMORY) * value, seen + 1)
        return warnings

    def _discriminator(self, row: Mapping[str, float]) -> list[str]:
        warnings = []
        if row.get("discriminator_accuracy", 0.5) > ACCURACY:
            warnings.append(
                f"the discriminator is right on {row['discriminator_accuracy']:.1%} of the patches: it has won and "
                "teaches little; lower optimizer.discriminator_lr or start it later (discriminator.start)"
            )
        largest = max(abs(row.get("logits_real", 0.0)), abs(row.get("logits_fake", 0.0)))
        if largest > LOGITS:
            warnings.append(
                f"mean discriminator logits reach {largest:.3g}: they run away; lower optimizer.discriminator_lr"
            )
        return warnings

    def _latents(self, row: Mapping[str, float]) -> list[str]:
        warnings = []
        if row.get("validation/active_channels_share", 1.0) < ACTIVE_CHANNELS_SHARE:
            warnings.append(
                f"only {row['validation/active_channels_share']:.0%} of the latent channels carry information "
                "(posterior collapse); lower loss.rate.weight, give it a warm-up (loss.rate.warmup), or let each "
                "channel have some nats free (loss.rate.free_nats)"
            )
        several = row.get("validation/images", 2) > 1
        if several and row.get("validation/reconstruction_spread", 1.0) < SAME_RECONSTRUCTION:
            warnings.append(
                "different images have the same reconstruction: the decoder ignores the latent; "
                "lower loss.rate.weight or optimizer.lr"
            )
        return warnings

    def _broken(self, row: Mapping[str, float], example: str) -> list[str]:
        """Warnings about images that cannot be used: once for each set, and again when their share has doubled.

        A validation without any image is told each time, since nothing else is known of that step.
        """
        shares = {"training": row.get("time/broken_share", 0.0)}
        lost, measured = row.get("validation/left_out", 0), row.get("validation/images", 0)
        shares["validation"] = lost / (lost + measured) if lost else 0.0
        if lost and not measured:
            self.told["validation"] = 1.0
            such = f" ({example})" if example else ""
            what = f"nothing was validated, since none of the {lost:.0f} validation images can be read{such}"
            return [
                f"{what}; the training goes on: put them back, or start it again with their new place (data.validation)"
            ]
        warnings = []
        for images, share in shares.items():
            if share > max(BROKEN_SHARE, 2 * self.told.get(images, 0.0)):
                self.told[images] = share
                what = "others stand in for them, see broken.jsonl" if images == "training" else "they are left out"
                warnings.append(
                    f"{share:.1%} of the {images} images are broken ({what}); "
                    "`ldm-vae check --decode` finds all: mend or remove them"
                )
        return warnings

    def _machine(self, row: Mapping[str, float]) -> list[str]:
        """A warning, once, about other processes for which threads that spin leave no core."""
        others = row.get("time/load_of_others", 0.0)
        spinning = torch.get_num_threads() > 1 and not chosen(os.environ)
        if self.told_of_others or not spinning or not is_busy(others):
            return []
        self.told_of_others = True
        what = f"other processes have kept the cores busy for minutes (a load of {others:.1f} beside this run's own)"
        remedy = "stop the run (Ctrl-C saves) and start it again with OMP_WAIT_POLICY=PASSIVE"
        return [f"{what}, and PyTorch's threads spin while they wait for each other; {remedy}"]

    def _data(self, row: Mapping[str, float]) -> list[str]:
        """A warning, once, that images come too late; a few late ones, as at the start, are nothing to tell."""
        share = row.get("time/data")
        if share is None or self.waits < 0:
            return []
        self.waits = self.waits + 1 if share > DATA_WAIT else 0
        if self.waits < PATIENCE:
            return []
        self.waits = -1
        return [f"the device waits for images {share:.0%} of the time; raise data.workers if cores are free"]

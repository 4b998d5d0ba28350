"""Everything that changes weights; runs from the checkout.

__main__.py     `python -m train RECIPE [a.b=value ...]`: trains a codec, or goes on with the training
recipe.py       The whole recipe of a run: one section a part, each declared beside the code it configures
fields.py       Recipe -> what each of its fields means, for people: `python -m train --fields` and
                docs/recipe.md
dry_run.py      What a recipe would do, without doing it: the resolved recipe, sizes, and a look at the data
build.py        A recipe -> the parts of a run, prepared by accelerate
initialise.py   First weights of an autoencoder: PyTorch's, or those of a codec that already works, averaging f
                x f pixels
state.py        What a training step works on: the prepared networks, the objective, the updates, and the draws
                of noise
step.py         One training step: an update of the autoencoder and one of the discriminator, from the same
                batch
optimizer.py    Adam for the autoencoder and for the discriminator: one configuration, one builder, one way to
                apply an update
ema.py          Exponential moving average of the autoencoder's weights: the weights that are validated and
                exported
guard.py        The non-finite guard: a step whose gradient holds NaN or infinity changes nothing, is counted,
                and may stop the run
agreement.py    Proof, at every save, that all ranks hold the same bits: replicas that drift apart do so in
                silence
loop.py         The course of a run: step, log, validate, save; until the last step, a signal, or a reason to
                stop
validate.py     Validation while training: held-out images through the averaged weights, on all ranks, each
                image once
health.py       Warnings about a run that goes wrong while its loss looks fine: what was seen, and what to try
log.py          What a run says of itself: metrics.jsonl, accelerate's trackers, a progress bar or plain lines
snapshot.py     A run as tensors and numbers: everything that decides how it goes on, and nothing that can be
                derived
checkpoint.py   When a run saves and which checkpoints it keeps
resume.py       Going on where a run stopped: which checkpoint, and whether the recipe is still the same
                experiment
preempt.py      Signals to stop: noted at once, agreed on by all ranks between two steps, answered by a save
status.py       What a run is doing, for people and scripts (status.json), and that only one trainer does it (a
                lock)
"""

"""Everything that changes weights; runs from the checkout.

__main__.py     `python -m train RECIPE [a.b=value ...]`: what is asked for, and how it ends
run.py          A training from its recipe to its end: checks, the lock, the parts of the run, the loop
recipe.py       The recipe of a run, with a section for each part
fields.py       The meaning of each field of a recipe, as text: `python -m train --fields` and docs/recipe.md
dry_run.py      A description of what a recipe would train: what it changes, what a step costs, and a look at the data
cost.py         What a training step costs: floating-point operations and bytes, counted on the `meta` device
half_on_meta.py bfloat16 on `meta`: casts where CUDA's autocast casts
memory.py       What to do where a step does not fit into memory: said in a line
look.py         A look at some training images: their size, and how many can be used
measure.py      The time of a training step on this device
launch.py       What a launcher was told beside the recipe: what contradicts the recipe is refused, since
                accelerate would ignore it
build.py        A recipe -> the parts of a run, prepared by accelerate
initialise.py   First weights of an autoencoder that make it a working codec: it averages f x f pixels
state.py        The parts of a run that a training step works on: networks, objective, updates and noise
step.py         One training step: an update of the autoencoder and one of each adversary, from the same batch
optimizer.py    Adam for the autoencoder and the adversaries: one configuration, one builder, one way to apply
                an update
ema.py          Exponential moving average of the autoencoder's weights: the weights that are validated and
                exported
guard.py        The non-finite guard: a step whose gradient holds NaN or infinity changes nothing, is counted,
                and may stop the run
agreement.py    A check at every save that all ranks hold the same bits
loop.py         The loop of a run: step, log, validate, save; until the last step, a signal, or an error
data_wait.py    How long the device stands still because the next images have not come
validate.py     Validation while training: held-out images through the averaged weights, on all ranks, each
                image once
health.py       Warnings about a run that goes wrong while its loss looks fine: what is wrong, and what to try
log.py          The log of a run: metrics.jsonl and warnings.jsonl
progress.py     What a run shows on stderr: on a terminal a bar with the losses below it, elsewhere lines
history.py      The validations of a run in words: a line for each, and the best of all
pictures.py     Pictures of a validation: originals, reconstructions, what differs, and the latent channels
trackers.py     The trackers of a run (TensorBoard, W&B, trackio): its recipe, rows, warnings and pictures
snapshot.py     The state of a run as tensors and numbers: everything that decides how it continues
checkpoint.py   When a run saves and which checkpoints it keeps
resume.py       How a run continues where it stopped: from which checkpoint, and whether the recipe is still the
                same experiment
preempt.py      Signals to stop: the process notes them at once, all ranks agree, and the run saves
status.py       The status of a run for people and scripts (status.json), and the lock that allows one trainer
                per run
"""

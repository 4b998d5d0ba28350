"""Pretrain latent codecs (KL autoencoders), and use them: `from ldm_vae import LatentCodec`.

Names are imported when first asked for, so that the command line answers without waiting for torch.

    errors.py      The one kind of error that a user can mend: it names the thing and the remedy in a line
    choices.py     What options and fields of recipes choose among, by name, without the code behind it
    extras.py      Packages that the base installation leaves out: where one is missing, a line names the command
    versions.py    Versions of this package and of what it runs on
    documents.py   JSON and YAML that anybody may have written -> values, bounded, or a UserError that names the file
    machine.py     Tells faults of the machine, such as too little memory, from all other errors
    passwords.py   Passwords and signatures in URLs: kept aside, sent in requests, never stored or shown
    printable.py   Text from files of others, made fit for a terminal
    quantities.py  Sizes and times as people read them, each in one unit
    system.py      Errors of the system about a file, whoever raises them: they name the file, and a line says them
    ending.py      How a command ends: in one line on stderr and an exit code
    tensors.py     Files of tensors: what cannot be read just now is not damaged
    recipe.py      Recipes: a YAML base plus overrides -> a typed, validated, frozen configuration
    schedules.py   Numbers that change over a run: pure functions of the optimizer step, the same on any number of
                   processes
    precision.py   What "in float32" means here: half types are upcast, float64 stays; names of types, and no autocast
    arithmetic.py  How float32 is computed: PyTorch's flags for TF32, set around our own networks and put back
    ranks.py       Which of several processes this is, and how they put their results together; one process is the
                   rule
    progress.py    The progress of long work on stderr: a bar on a terminal, a line now and then in a log
    launch.py      The `accelerate launch` that started this process, and what a person told it
    devices.py     The device that a command computes on: which one, why no other, and what it lacks
    waiting.py     How PyTorch's threads wait for each other on a CPU, chosen by the load of the machine
    writers.py     Which process wrote a hidden file, and whether it lives, as far as its number and the time tell
    marks.py       What stands in for locks where the file system has none
    locks.py       Locks that the system frees when their holder ends
    stages.py      Names of what is being written, and whether its writer is alive
    atomic.py      Files and folders that appear under their name whole, or not at all, whatever kills the writer
    cache.py       The cache of this machine: weights of others, data sets that are made, what is known of files
    transfer.py    Copies between host and device that nobody waits for
    noise.py       Where every random number comes from: a function of the seed and of what it is for
    parts.py       The kinds of networks, bottlenecks and adversaries, by the word that a recipe names them with
    checks.py      Checks of values on a device: at once, or read with the result that they are about
    sparing.py     How much memory a network may take for one image, where a device had too little for it as a whole
    fitting.py     Batches that fit into memory: where it runs out, they are halved, and one image computed in pieces
    overlap.py     Lets a device compute one batch while the host reads the next one and writes the last one
    finite.py      What a network computes, finite: half types that overflow are computed again in float32
    images.py      Pillow, numpy and bytes <-> the tensors that a codec takes
    arguments.py   What is given to a codec: checked, and named with what converts it where it is no such thing
    padding.py     Images of any size beside networks that want multiples of f: padded, and cropped back
    codec.py       LatentCodec: image <-> scaled latent, the one object that everything outside training uses
    __main__.py    `python -m ldm_vae` is the same as `ldm-vae`
    bottlenecks/   What stands between encoder and decoder: how a latent is drawn, and what it costs
    cli/           The `ldm-vae` command, a file a subcommand
    data/          Shards of images -> batches: pictures, shards, and the stream of training
    diagnostics/   What a latent space is like, and what is wrong with it
    evaluation/    What a codec does to images, in numbers, beside simple codecs of the same rate
    family/        The VAEs of textbooks: behind a wall, imported when a recipe asks for one
    interop/       Formats of others, and our own: models come from here and go there
    latents/       Images as a data set of latents: written, read, measured
    losses/        Losses, one small file each
    metrics/       Numbers about images and latents
    networks/      Whole autoencoders: what training wraps and export saves
    nn/            Blocks that networks are made of
    piecewise/     The same networks evaluated in pieces
    pretrained/    Weights of networks that others trained: found, verified and kept
    views/         Changes of a picture that have a counterpart in the latent
    report/        A run as one HTML file; `templates/` holds the page, its style and its script
"""

from __future__ import annotations

from importlib import import_module, metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm_vae.codec import LatentCodec
    from ldm_vae.errors import UserError
    from ldm_vae.images import from_numpy, from_pil, from_uint8, to_numpy, to_pil, to_uint8
    from ldm_vae.latents.dataset import LatentDataset

    __version__: str

__all__ = [
    "LatentCodec",
    "LatentDataset",
    "UserError",
    "__version__",
    "from_numpy",
    "from_pil",
    "from_uint8",
    "to_numpy",
    "to_pil",
    "to_uint8",
]

_HOMES = {
    "LatentCodec": "ldm_vae.codec",
    "LatentDataset": "ldm_vae.latents.dataset",
    "UserError": "ldm_vae.errors",
    "from_numpy": "ldm_vae.images",
    "from_pil": "ldm_vae.images",
    "from_uint8": "ldm_vae.images",
    "to_numpy": "ldm_vae.images",
    "to_pil": "ldm_vae.images",
    "to_uint8": "ldm_vae.images",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        return metadata.version("ldm-vae")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

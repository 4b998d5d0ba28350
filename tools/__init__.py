"""Measurements and the demo; they run from the checkout.

demo.py               `make demo`: the whole path on real photographs
photographs.py        The demo's data: the photographs that scikit-image and scikit-learn install
latent_diffusion.py   Worked example: trains a small DiT on stored latents, and samples its DiTPipeline
probe.py              Learnability probe: a table of reconstruction and generation for several codecs
learnability.py       Measures how a codec reconstructs, and how well a small DiT learns its latents
denoiser.py           A small DiT and its training, for the probe and the worked example
command.py            Runs a function as a command: options by typer, a UserError as one line on stderr
published_protocols.py  Compares `--protocol` with the scripts of the projects themselves
published_scripts.py    Runs the evaluation script of a published project without a GPU
bench_decode.py       Measures time, memory and error of full passes, tiles and pieces on one large picture
bench_start.py        Measures how long commands take to answer, beside an older commit
bench_waiting.py      Measures how waiting threads slow a training step on a machine that has other work
stand_in/             A device that pretends to be a GPU: what would wait, crash or take memory there shows here
screenshot.py         Takes a picture of the top of a report, for the README
terminal.py           Takes a picture of a terminal in which a command runs
golden.py             `make golden`: compares training and encoding with an older commit, bit for bit
install.py            Installs with pip, and shows what takes long
versions.py           `make constraints`, `make lower-bounds`: tested and lowest versions of dependencies
release.py            `make release`: builds and checks a release, and prints how to publish it
diffusers_suite.py    Runs diffusers' own tests of AutoencoderKL through the drop-in
reliability.py        Writes docs/reliability.md: which faults were injected, and what was lost
faults.py             Lets the n-th call of libc fail, by the preloaded library `every_call.c`
every_call_jobs.py    The small jobs: each command on four pictures
every_call.py         Lets every call of a job fail, and judges what comes of it
every_call_results.py Its command: keeps the results in a file, and prints a table
"""

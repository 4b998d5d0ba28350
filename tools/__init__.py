"""Measurements and the demo; they run from the checkout.

demo.py               The whole path on real photographs, from the checkout's root: make demo [STEPS=n]
photographs.py        The demo's data: the colour photographs that scikit-image and scikit-learn install, by
                      name
latent_diffusion.py   Worked example: a small class-conditional DiT trained on stored latents, saved as a
                      DiTPipeline and sampled
probe.py              Learnability probe: reconstruction beside generation, one row a codec, under the same
                      small budget
learnability.py       How one codec reconstructs pictures, and how well a small diffusion transformer learns its
                      latents of them
denoiser.py           A small diffusion transformer of diffusers, trained by flow matching: what the probe and
                      the worked example share
command.py            A function as a command of its own: options by typer, and a UserError as one line on
                      stderr with exit code 2
bench_decode.py       Time, memory and error of decoding and encoding one large picture: the full pass,
                      diffusers' tiles, our pieces
screenshot.py         The top of a report as a picture for the README
golden.py             Golden rows: does this checkout train and encode as an older commit does, bit for bit?
release.py            Builds and checks a release, and says how to publish it
reliability.py        Docs/reliability.md: what was done to the software, how often, and what was lost; and how
                      soon a run is back
"""

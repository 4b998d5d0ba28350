"""What a latent space is like, and what is wrong with it.

findings.py       What `ldm-vae inspect` finds: numbers, curves, pictures and verdicts, each with what it means;
                  and the file of them
sample.py         A bounded sample of a stream: every row is as likely to be in it as any other, however long
                  the stream is
rings.py          Power spectra of pictures of any size, gathered over rings of equal spatial frequency
channels.py       What each latent channel carries: its rate, whether it is active, its noise, and how channels
                  go together
aggregate.py      How far the aggregate posterior, all latents of all images together, is from the prior N(0, I)
spectrum.py       Power spectrum of latents beside that of the images they stand for: is there too much at high
                  frequencies?
blur.py           What is left of an image's detail in its reconstruction, frequency by frequency: blur
                  measured, in dB
anomaly.py        How unusual each image is to the codec, and how well that tells two sets of images apart
probes.py         A few images that the costly diagnostics look at again and again, with their latents and
                  reconstructions
survey.py         One pass over images: everything that is gathered from all of them
equivariance.py   Does the latent turn and shrink with the picture? The equivariance error of encoder and
                  decoder
smoothness.py     How the picture moves when the latent does: a small step at random, and the line between two
                  latents
robustness.py     What a reconstruction loses when its latent is noisy or stored in few bits
activations.py    The largest value that each layer gives, and whether float16 could hold it
mosaic.py         Decoded tensors -> one small PNG of tiles in rows, with a label at each row and column
explore.py        Pictures of the latent space: what lies between two images, along its main directions, and at
                  random places
classes.py        Where the images of each class lie in latent space: their mean latents along the first two
                  principal directions
inspect.py        A codec and shards -> all diagnostics, in a folder of inspection.json, PNGs and scores.csv
"""

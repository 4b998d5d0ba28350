"""What a latent space is like, and what is wrong with it.

findings.py       The types of what `ldm-vae inspect` finds, and the file inspection.json
sample.py         A random sample of bounded size from a stream of any length
rings.py          Power spectra of pictures, averaged over rings of equal spatial frequency
channels.py       What each latent channel carries: rate, noise, whether it is active, correlation with others
aggregate.py      How far the aggregate posterior (all latents of all images) is from the prior N(0, I)
spectrum.py       The power spectrum of latents beside that of their images: too much at high frequencies?
blur.py           How much of an image's detail is left in its reconstruction, by frequency
anomaly.py        How unusual each image is to the codec, and how well that tells two sets of images apart
comparison.py     What averaging and PCA make of the same images, and how far each codec is from them
reconstruction.py Is the reconstruction any good? Beside averaging, PCA and published codecs of its rate
probes.py         A few images on which the costly diagnostics are measured
survey.py         One pass over all images, which collects what the diagnostics need
equivariance.py   Does the latent turn and shrink with the picture?
smoothness.py     How much the picture changes when the latent does
robustness.py     How much worse a reconstruction is where its latent is noisy, or stored in few bits
activations.py    The largest value that each layer outputs, and whether float16 can hold it
mosaic.py         Writes decoded tensors as one PNG of labelled tiles
explore.py        Pictures of the latent space: between two images, along main directions, at random places
classes.py        A chart of where the images of each class lie in latent space
inspect.py        Runs all diagnostics and writes the folder of inspection.json, PNGs and scores.csv
"""

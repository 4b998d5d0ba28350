"""Numbers about images and latents.

descriptions.py  What each metric is called, its unit, and whether higher or lower is better
pair.py      LPIPS' network over a pair of images, once for two numbers: their distance, and what its last layer
             sees in each
image.py     How far a reconstruction is from its image: one number per image and metric, taken on 8-bit values
spool.py     Features of images on disk: written as they come on each process, put in the order of keys on the
             first one
frechet.py   How far two sets of features are apart, as torch-fidelity computes it, from features that lie in a
             file
sets.py      How far the reconstructions are from the images as two sets: one number for all images, from
             features of each
latent.py    Mean and standard deviation of latents, gathered image by image in float64, and the file that keeps
             them
"""

"""Numbers about images and latents.

descriptions.py   What each metric is called, its unit, and whether higher or lower is better
pixels.py         The pixel values that a metric compares: published protocols round them differently
pair.py           Runs LPIPS' network on pairs of images: distances and features
image.py          How far a reconstruction is from its image: one number for each image and metric
spool.py          Keeps features of images on disk, and sorts those of all processes
frechet.py        How far apart two sets of features are
sets.py           How far the reconstructions are from the images, as two sets: one number for all images
latent.py         Mean and standard deviation of latents, and the file that keeps them
"""

"""What a codec does to images, in numbers, beside simple codecs of the same rate.

evaluate.py    A codec and images -> numbers, with the protocol they were taken under
results.py     What was measured on images -> an evaluation's results: means, distances, what is missing, and
               the protocol
compare.py     Two codecs on the same images: differences image by image, with an interval that tells a gain
               from noise
pca.py         The linear codec that a trained one is held against: PCA of f x f patches, as many numbers per
               image as a latent has
lossy.py       JPEG and WebP at the bytes that a latent of 16 bits takes
baselines.py   A baseline's name on the command line -> a codec of the rate of the one it is held against
"""

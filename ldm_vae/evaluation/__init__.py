"""What a codec does to images, in numbers, beside simple codecs of the same rate.

evaluate.py    Measures a codec on images or shards, on any number of processes
results.py     The results of an evaluation: means, set distances, what is missing and why, the protocol
protocols.py   Protocols of published tables, for numbers to stand beside theirs
compare.py     Compares two codecs image by image, with an interval that separates a gain from noise
shared.py      Gives entries and reasons once where several codecs share them
wording.py     Says in words which of two codecs is better, by how much, and whether that is more than chance
entries.py     Codecs that were measured on the same images, and their comparisons, as JSON
store.py       Keeps what was measured on a run's codec in the run's results.json
pca.py         Baseline: PCA of f x f patches with as many numbers per image as a latent has
averaging.py   Baseline: averages over f x f pixels, shown as flat squares
lossy.py       Baseline: JPEG and WebP with as many bytes as a latent of 16 bits per number
baselines.py   Makes a baseline from its name on the command line
published.py   What published codecs reach, with the data and the protocol of each number
"""

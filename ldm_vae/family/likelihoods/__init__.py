"""What a decoder's output says of an image: the distributions of its values, p(x | z).

base.py          What every likelihood does, and bits per dimension
spread.py        Standard deviations: fixed, learned for all values at once, or learned for each value
gaussian.py      Gaussian: squared errors
laplace.py       Laplace: absolute errors
bernoulli.py     Bernoulli on logits: pixels that are black or white
levels.py        The levels of a quantised image, which some likelihoods give a probability each
categorical.py   Categorical: a logit for each level of each value
logistic.py      Discretized logistic, or a mixture of them: the mass of a density around each level
"""

"""The kinds of networks, bottlenecks, likelihoods and adversaries: the name of each in a recipe, and its module.

A new kind is a file of its own and a line here. A module is imported when a recipe or a model names its kind.
"""

from __future__ import annotations

from ldm_vae.recipe import Kind, Kinds

FAMILY = "ldm_vae.family.measures"  # what is measured of networks of the family

NETWORKS = Kinds(
    "a network",
    default="kl",
    table={
        "kl": Kind("ldm_vae.networks.kl", "AutoencoderConfig", "Autoencoder"),
        "mlp": Kind("ldm_vae.family.networks.mlp", "MlpConfig", "Mlp", FAMILY),
    },
)
BOTTLENECKS = Kinds(
    "a bottleneck",
    default="gaussian",
    table={
        "gaussian": Kind("ldm_vae.bottlenecks.gaussian", "GaussianConfig", "DiagonalGaussian"),
        "deterministic": Kind("ldm_vae.bottlenecks.deterministic", "DeterministicConfig", "Deterministic"),
    },
)
LIKELIHOODS = Kinds(
    "a likelihood",
    default="gaussian",
    table={
        "gaussian": Kind("ldm_vae.family.likelihoods.gaussian", "GaussianLikelihoodConfig", "GaussianLikelihood"),
        "laplace": Kind("ldm_vae.family.likelihoods.laplace", "LaplaceLikelihoodConfig", "LaplaceLikelihood"),
        "bernoulli": Kind("ldm_vae.family.likelihoods.bernoulli", "BernoulliLikelihoodConfig", "BernoulliLikelihood"),
        "categorical": Kind(
            "ldm_vae.family.likelihoods.categorical", "CategoricalLikelihoodConfig", "CategoricalLikelihood"
        ),
        "logistic": Kind("ldm_vae.family.likelihoods.logistic", "LogisticLikelihoodConfig", "LogisticLikelihood"),
    },
)
ADVERSARIES = Kinds(
    "an adversary",
    default="patch",
    table={
        "patch": Kind("ldm_vae.losses.adversarial", "DiscriminatorConfig", "PatchAdversary"),
    },
)

# Class of diffusers -> the kind of network that it holds, and the module that translates both ways.
LAYOUTS = {"AutoencoderKL": ("kl", "ldm_vae.interop.layouts.kl")}
# Kind of network that can be evaluated in pieces -> the module that cuts it into steps.
CHAINS = {"kl": "ldm_vae.piecewise.chains.kl"}
# Data set that comes with the package, `made:NAME/PART` -> the module that makes its samples.
MADE = {"digits": "ldm_vae.family.data.digits"}

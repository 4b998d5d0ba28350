"""The `ldm-vae` command: one file for each subcommand.

app.py                The command itself: its list of subcommands, and how errors are shown
options.py            Options that several subcommands share
summary.py            What commands on data say at the end, and in a dry run
shards.py             `ldm-vae shards`: packs a folder of images into shards with an index
check.py              `ldm-vae check`: finds what is wrong with shards, and indexes them
check_latents.py      `ldm-vae check LATENTS`: shows what is wrong with a folder of latents
train.py              `ldm-vae train`: the trainer, which the wheel leaves out, in a checkout of the project
evaluate.py           `ldm-vae evaluate`: measures codecs and baselines on shards, and compares them
evaluation_table.py   Prints the results of codecs, and who is better
inspect.py            `ldm-vae inspect`: finds what is wrong with a codec and its latent space
inspection_table.py   Prints an inspection: first whether reconstruction is any good, verdicts at the end
report.py             `ldm-vae report`: writes a run, or several, as one HTML file
stats.py              `ldm-vae stats`: measures mean and standard deviation of latents
export.py             `ldm-vae export`: writes a codec as a folder that diffusers loads
encode.py             `ldm-vae encode`: turns image shards into latent shards
encode_dry_run.py     `ldm-vae encode --dry-run`: says what encoding will give and how long it will take
decode.py             `ldm-vae decode`: turns latent shards back into pictures
roundtrip.py          `ldm-vae roundtrip`: measures what storing latents costs
sample.py             `ldm-vae sample`: draws new pictures from a model of the family
"""

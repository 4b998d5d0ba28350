"""The `ldm-vae` command: one file for each subcommand.

app.py                The command itself: its list of subcommands, and how errors are shown
options.py            Options that several subcommands share
shards.py             `ldm-vae shards`: packs a folder of images into shards with an index
check.py              `ldm-vae check`: finds what is wrong with shards, and indexes them
check_latents.py      `ldm-vae check LATENTS`: shows what is wrong with a folder of latents
evaluate.py           `ldm-vae evaluate`: measures codecs and baselines on shards, and compares them
evaluation_table.py   Prints the results of codecs as tables
inspect.py            `ldm-vae inspect`: finds what is wrong with a latent space
report.py             `ldm-vae report`: writes a run, or several, as one HTML file
stats.py              `ldm-vae stats`: measures mean and standard deviation of latents
export.py             `ldm-vae export`: writes a codec as a folder that diffusers loads
encode.py             `ldm-vae encode`: turns image shards into latent shards
decode.py             `ldm-vae decode`: turns latent shards back into pictures
roundtrip.py          `ldm-vae roundtrip`: measures what storing latents costs
"""

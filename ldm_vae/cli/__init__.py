"""The `ldm-vae` command, a file a subcommand.

app.py                The ldm-vae command: which subcommands there are, and how errors reach the person
options.py            Options that several commands share, and how they are read
shards.py             A folder of images -> shards with index
check.py              Shards -> a table of what is wrong with them, and their index
evaluate.py           Codecs, baselines and shards -> the table of metrics, its protocol, and what is gain or
                      noise
inspect.py            What is wrong with a latent space, before anybody trains on it
evaluation_table.py   Results of codecs as tables on the terminal: a column a codec, what is missing and why,
                      where protocols differ
report.py             A run, or several, as one HTML file that people look at
stats.py              The numbers that make latents fit for diffusion models
export.py             From here into diffusers
encode.py             A data set of images into one of latents
decode.py             Latents back into pictures
roundtrip.py          What is lost on the way into storage and back
"""

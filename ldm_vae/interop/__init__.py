"""Formats of others, and our own: models come from here and go there.

checkpoint.py   The checkpoint folder: safetensors and JSON, nothing that is unpickled, whole or not there at
                all
diffusers.py    The folder format of diffusers.AutoencoderKL: config.json and
                diffusion_pytorch_model.safetensors
hub.py          The Hugging Face Hub: a model on it -> its folder in the Hub's cache, and an export -> a model
                on it
load.py         A reference to a model -> its network, its scale, and where it came from
pipelines.py    What diffusers' pipelines read of a codec's configuration, and what they pass over in silence
export.py       A model and its measured statistics -> a diffusers folder that says the truth about itself
drop_in.py      An AutoencoderKL whose encode and decode are a codec's: any size exactly, with less memory,
                never a NaN
"""

"""Formats of others, and our own: models come from here and go there.

checkpoint.py   The checkpoint folder: safetensors and JSON, whole or not there at all
layouts/        What diffusers calls a network and its weights, a file for each of its classes
diffusers.py    The folder format of diffusers' models
native.py       A folder of our own for codecs that diffusers has no class for
hub.py          The Hugging Face Hub: downloads a model, uploads an export
load.py         A reference to a model -> its network, its scale, and where it came from
pipelines.py    What diffusers' pipelines read of a codec's configuration, and what they pass over in silence
export.py       A model and its measured statistics -> a folder that diffusers loads
drop_in.py      An AutoencoderKL whose encode and decode are a codec's
"""

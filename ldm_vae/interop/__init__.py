"""Formats of others, and our own: models come from here and go there.

checkpoint.py    The checkpoint folder: safetensors and JSON, whole or not there at all
layouts/         Translations between our networks and diffusers' classes, a file for each class
weights.py       The files of weights in such a folder -> a state dict, whole or in parts, rounded or not
diffusers.py     The folder format of diffusers' models
native.py        A folder of our own for codecs that diffusers has no class for
card_update.py   Writes a model card anew, and keeps what a person wrote into it
hub.py           The Hugging Face Hub: downloads a model, uploads an export
results.py       The results.json of a run: what was measured, at which weights, on which data, by which protocol
origin.py        From which codec a model has its encoder, and so its latents and their scale
untouched.py     Finds what somebody changed in a live AutoencoderKL
load.py          A reference to a model -> its network, its scale, and where it came from
pipelines.py     Which parts of a codec's configuration diffusers' pipelines read
card_licence.py  The licence in a model card's metadata, as the Hub wants it
card_picture.py  The picture of a model card: the run's validation images beside their reconstructions
card.py          The model card of an export: what it says about the codec
export.py        A model and its measured statistics -> a folder that diffusers or `LatentCodec` loads
drop_in.py       An AutoencoderKL that encodes and decodes with a codec, or as diffusers does where it was changed
"""

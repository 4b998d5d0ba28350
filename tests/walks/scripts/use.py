"""What an engineer tries first: a picture through a codec."""

from pathlib import Path

from PIL import Image

from ldm_vae import LatentCodec, UserError, from_pil, to_pil

codec = LatentCodec.from_pretrained("vae")
print(codec)
picture: Image.Image = Image.open(next(Path("photographs/validation").glob("*.png")))
try:
    codec.encode(picture)  # type: ignore[arg-type]  # as people try
except UserError as error:
    print(error)
images = from_pil(picture)
latents = codec.encode(images)
print(tuple(images.shape), "->", tuple(latents.shape))
decoded = codec.decode(latents, size=images.shape[2:])
assert decoded.allclose(codec.roundtrip(images), atol=1e-5)  # scaled and back: some roundings
to_pil(decoded)[0].save("reconstruction.png")
print(Image.open("reconstruction.png").size, picture.size)

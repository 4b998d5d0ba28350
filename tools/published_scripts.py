"""Runs the evaluation script of a published project on one machine without a GPU, and prints its numbers as JSON.

    python tools/published_scripts.py vavae|seed|titok CHECKOUT MODEL PICTURES INCEPTION BATCH

`tools.published_protocols` starts it in a process of its own, because the projects call their own folders `tools`,
`models` and `data`. The scripts run as they are, but for what this file replaces: devices, process groups, weights
that they would download, the model, and the posterior's sample by its mode, since a sample's noise differs.

MODEL: a folder of diffusers' AutoencoderKL.
PICTURES: a folder of classes, each a folder of pictures.
INCEPTION: a file with the weights of the 2015 Inception network.
BATCH: images in a batch.
"""

from __future__ import annotations

import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib import import_module
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import lpips
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from PIL import Image
from torch import Tensor

from ldm_vae.losses.perceptual import BACKBONE, LPIPSNetwork
from ldm_vae.pretrained.backbones import backbone_weights

LPIPS_OF_PACKAGE = lpips.LPIPS


def lpips_with_weights(net: LPIPSNetwork = "vgg") -> Any:
    """The package's LPIPS with the backbone that this machine has."""
    model = LPIPS_OF_PACKAGE(net=net, pnet_rand=True, verbose=False)
    weights = backbone_weights(BACKBONE[net])
    model.net.load_state_dict({key: weights[f"features.{key.partition('.')[2]}"] for key in model.net.state_dict()})
    return model.eval()


class Model:
    """A diffusers autoencoder with the interface of SEED's and TiTok's quantised ones."""

    use_ema = False

    def __init__(self, folder: str) -> None:
        self.vae = AutoencoderKL.from_pretrained(folder).eval()

    def to(self, device: Any) -> Model:
        return self

    @torch.no_grad()
    def encode(self, images: Tensor) -> tuple[Tensor, None, Tensor, None]:
        return self.vae.encode(images).latent_dist.mode(), None, torch.zeros(1, dtype=torch.int64), None

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        reconstruction: Tensor = self.vae.decode(latents).sample
        return reconstruction


def pictures_of(folder: str) -> list[str]:
    return sorted(str(path) for path in Path(folder).glob("*/*"))


def batches(dataset: list[Any], size: int) -> Iterator[Tensor]:
    for start in range(0, len(dataset), size):
        yield torch.stack(dataset[start : start + size])


def module_of(path: Path, text: str, **names: Any) -> ModuleType:
    """A module with this source and these names beside it."""
    module = ModuleType(path.stem)
    module.__dict__.update(names, __file__=str(path))
    sys.modules[path.stem] = module
    exec(compile(text, str(path), "exec"), module.__dict__)
    return module


def absent(*names: str) -> None:
    """Stands in for packages that a script imports and does not use here."""
    for name in names:
        stand_in = ModuleType(name)
        stand_in.__path__ = []
        stand_in.__getattr__ = lambda _: SimpleNamespace  # type: ignore[method-assign]
        sys.modules.setdefault(name, stand_in)


def vavae(checkout: Path, model: str, pictures: str, weights: dict[str, Tensor], batch: int) -> str:
    absent("omegaconf")
    for key, value in {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}.items():
        os.environ.setdefault(key, value)
    import models.lpips  # type: ignore[import-not-found]

    calculate_fid: Any = import_module("tools.calculate_fid")  # in the checkout, where `tools` is another folder
    calculate_fid.load_state_dict_from_url = lambda *_, **__: weights
    models.lpips.vgg16 = lambda **_: lpips_with_weights().net
    models.lpips.LPIPS.load_from_pretrained = lambda self: self.load_state_dict(
        {k: v for k, v in lpips_with_weights().state_dict().items() if k.startswith("lin")}, strict=False
    )
    script = checkout / "evaluate_tokenizer.py"
    text = script.read_text()
    for old, new in (
        ("'nccl'", "'gloo'"),
        ("torch.cuda.set_device(local_rank)", "pass"),
        ("f'cuda:{local_rank}'", "'cpu'"),
        ("path/to/your/sd-vae-ft-ema", model),
        ("posterior.sample()", "posterior.mode()"),
        ("num_workers=4", "num_workers=0"),
        ("num_workers=16", "num_workers=0"),
        ("batch_size=8", f"batch_size={batch}"),
        (":.3f}", ":.6f}"),
        ("ReduceOp.AVG", "ReduceOp.SUM"),  # gloo has no mean; there is one process
    ):
        assert old in text, f"{script} is another version: it holds no {old}"
        text = text.replace(old, new)
    with tempfile.TemporaryDirectory() as out:
        module_of(script, text).evaluate_tokenizer("none.yaml", "sdvae", pictures, out)
    return ""


def seed(checkout: Path, model: str, pictures: str, weights: dict[str, Tensor], batch: int) -> str:
    absent(
        "omegaconf",
        "albumentations",
        *("src.Open_MAGVIT2.models", "src.Open_MAGVIT2.models.lfqgan", "src.IBQ", "src.IBQ.models"),
        *("src.IBQ.models.ibqgan", "src.IBQ.models.ibqgan_pretrain"),
    )
    import metrics.inception  # type: ignore[import-not-found]
    from src.Open_MAGVIT2.data.base import ImagePaths  # type: ignore[import-not-found]

    metrics.inception.load_state_dict_from_url = lambda *_, **__: weights
    lpips.LPIPS = lpips_with_weights
    images = ImagePaths(pictures_of(pictures), size=256)
    held = [torch.from_numpy(images[i]["image"]) for i in range(len(images))]
    data = SimpleNamespace(
        prepare_data=lambda: None,
        setup=lambda: None,
        _val_dataloader=lambda: [{"image": one} for one in batches(held, batch)],
    )
    script = checkout / "evaluation_image.py"
    module = module_of(script, script.read_text())
    config: Any = SimpleNamespace()
    config.data = SimpleNamespace(init_args=SimpleNamespace(validation=SimpleNamespace(params=config)))
    config.config, config.model = SimpleNamespace(), SimpleNamespace(init_args=SimpleNamespace(n_embed=1))
    module.__dict__.update(
        OmegaConf=SimpleNamespace(load=lambda _: config),
        load_config=lambda *_, **__: config,
        load_vqgan_new=lambda *_, **__: Model(model),
        instantiate_from_config=lambda _: data,
    )
    module.main(SimpleNamespace(config_file="", ckpt_path="", image_size=256, batch_size=batch, model="Open-MAGVIT2"))
    return ""


def titok(checkout: Path, model: str, pictures: str, weights: dict[str, Tensor], batch: int) -> str:
    import evaluator.inception  # type: ignore[import-not-found]

    evaluator.inception.load_state_dict_from_url = lambda *_, **__: weights
    from data.webdataset_reader import ImageTransform  # type: ignore[import-not-found]

    prepare = ImageTransform(normalize_mean=[0.0] * 3, normalize_std=[1.0] * 3).eval_transform
    held = [prepare(Image.open(path).convert("RGB")) for path in pictures_of(pictures)]
    measure = evaluator.VQGANEvaluator("cpu", enable_inception_score=False)
    codec = Model(model)
    text = (checkout / "utils" / "train_utils.py").read_text()
    start = text.index("def eval_reconstruction(")
    function = text[start : text.index("\n@torch.no_grad()", start)]
    module = module_of(checkout / "eval_reconstruction.py", function, torch=torch)

    def reconstruct(images: Tensor) -> tuple[Tensor, None]:  # this project's images lie in [0, 1]
        return (codec.decode(codec.encode(images * 2 - 1)[0]) + 1) / 2, None

    network = SimpleNamespace(eval=lambda: None, train=lambda: None)
    accelerator = SimpleNamespace(device="cpu", unwrap_model=lambda _: reconstruct)
    loader = [{"image": one} for one in batches(held, batch)]
    found = module.eval_reconstruction(network, loader, accelerator, measure)
    return "".join(f"{name}: {float(value)}\n" for name, value in found.items())


SCRIPTS: dict[str, Callable[[Path, str, str, dict[str, Tensor], int], str]] = {
    "vavae": vavae,
    "seed": seed,
    "titok": titok,
}


def main(name: str, checkout: str, model: str, pictures: str, inception: str, batch: str) -> None:
    sys.path[:] = [checkout, *(entry for entry in sys.path if not (Path(entry) / "tools" / "__init__.py").exists())]
    weights = torch.load(inception, map_location="cpu", weights_only=True)
    printed = io.StringIO()
    with redirect_stdout(printed):
        returned = SCRIPTS[name](Path(checkout), model, pictures, weights, int(batch))
    numbers = re.findall(r"([\w-]+): +(-?[\d.]+(?:e-?\d+)?)\s*$", printed.getvalue() + returned, re.MULTILINE)
    print(json.dumps({key: float(value) for key, value in numbers}))


if __name__ == "__main__":
    main(*sys.argv[1:])

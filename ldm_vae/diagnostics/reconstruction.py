"""Is the reconstruction any good? The codec beside averaging, PCA of equal rate, and published codecs of that rate."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ldm_vae.choices import MetricName
from ldm_vae.codec import LatentCodec
from ldm_vae.diagnostics.comparison import AVERAGING, CODEC, PCA, SAMPLED_METRICS, SAMPLED_SIDE, Comparison
from ldm_vae.diagnostics.findings import Quantity, Section, Table, Verdict
from ldm_vae.evaluation.compare import PairedDifference, compare
from ldm_vae.evaluation.published import PublishedResult, published_near
from ldm_vae.metrics.descriptions import describe_metric
from ldm_vae.metrics.image import MeasuredImage
from ldm_vae.printable import counted

NAME = "reconstruction"
METRICS: tuple[MetricName, ...] = ("psnr", *SAMPLED_METRICS)
DIGITS = {"psnr": 2, "ssim": 3, "lpips_vgg": 3}
ONE_IMAGE = "it takes two images with different names: one to fit it on, one to code"
NOTHING = "no image has a finite reconstruction"
LONGER = "Train longer (steps), and watch whether the validation PSNR still rises."
ARROWS = {"higher": " ↑", "lower": " ↓", "": ""}


def inspect_reconstruction(codec: LatentCodec, comparison: Comparison) -> Section:
    """How near reconstructions are to their images, and whether that is good for the codec's rate."""
    colours = codec.model.config.in_channels
    names = {
        CODEC: "this codec",
        AVERAGING: f"averages of {codec.factor} x {codec.factor} pixels",
        PCA: f"PCA of {codec.factor} x {codec.factor} patches",
    }
    numbers = {CODEC: codec.latent_channels, AVERAGING: colours, PCA: codec.latent_channels}
    published = published_near(codec.factor, codec.latent_channels) if colours == 3 else []
    quantities = [
        _quantity(comparison, name, metric, names[name], numbers[name]) for name in names for metric in METRICS
    ]
    tables = [_beside(comparison, names, numbers)]
    if published:
        tables.append(_published(published, codec))
    return Section(
        name=NAME, title="Reconstruction", numbers=tuple(quantities), tables=tuple(tables),
        verdicts=(_verdict(codec, comparison, published),),
    )  # fmt: skip


def _mean(rows: Sequence[MeasuredImage], metric: str) -> tuple[float | None, str]:
    """The mean over the images that were measured, and why there is none."""
    values = [row.values[metric] for row in rows if metric in row.values]
    if values:
        return math.fsum(values) / len(values), ""
    return None, next((row.missing[metric] for row in rows if metric in row.missing), NOTHING)


def _quantity(comparison: Comparison, name: str, metric: MetricName, codec: str, numbers: int) -> Quantity:
    rows, description = comparison.rows[name], describe_metric(metric)
    value, missing = _mean(rows, metric)
    if name == PCA and not rows and comparison.rows[CODEC]:
        missing = ONE_IMAGE
    measured = sum(metric in row.values for row in rows)
    which = f"the middle {SAMPLED_SIDE} px of {counted(measured, 'image')}" if metric in SAMPLED_METRICS else ""
    how = {
        CODEC: "reconstructions from the posterior's mode",
        AVERAGING: "flat squares of the mean colour of each patch",
        PCA: "the best linear codec of patches; each image is coded by the PCA of the other half of these images",
    }[name]
    return Quantity(
        name=f"{metric}_{name}" if name != CODEC else metric, value=value, unit=description.unit, missing=missing,
        title=f"{description.title}, {codec}",
        definition=f"Mean over {which or counted(measured, 'image')} of 8-bit values; {how} "
        f"({counted(numbers, 'number')} a position).",
        source="Eckart & Young 1936" if name == PCA else "",
    )  # fmt: skip


def _beside(comparison: Comparison, names: dict[str, str], numbers: dict[str, int]) -> Table:
    rows = []
    for name, title in names.items():
        values = {metric: _mean(comparison.rows[name], metric)[0] for metric in METRICS}
        cells = ("" if v is None else f"{v:.{DIGITS[metric]}f}" for metric, v in values.items())
        rows.append((title, str(numbers[name]), *cells))
    described = [(metric, describe_metric(metric)) for metric in METRICS]
    images = counted(len(comparison.rows[CODEC]), "image")
    fitted = " Each image's PCA is fitted on the other half of the images." if comparison.rows[PCA] else ""
    return Table(
        name="beside", title="Beside simple codecs, on the same images",
        definition=f"PSNR: mean over {images}. SSIM and LPIPS: mean over the middle {SAMPLED_SIDE} px of "
        f"{comparison.sampled} of them. Numbers: of the latent, at each position.{fitted}",
        columns=("", "numbers", *(
            f"{one.title}{', ' * bool(one.unit)}{one.unit}{ARROWS[one.better]}" for _, one in described
        )),
        rows=tuple(rows),
    )  # fmt: skip


def _published(published: Sequence[PublishedResult], codec: LatentCodec) -> Table:
    pages = list(dict.fromkeys(one.page for one in published))
    rows = [
        (
            f"{one.codec} [{pages.index(one.page) + 1}]", f"f{one.factor}c{one.channels}", f"{one.images}, {one.side}",
            "" if one.psnr is None else f"{one.psnr:.2f}", "" if one.ssim is None else f"{one.ssim:.3f}",
            "" if one.lpips is None else f"{one.lpips:.3f}",
            "" if one.rfid is None else f"{one.rfid:.2f}",
        )
        for one in published
    ]  # fmt: skip
    same = math.isclose(published[0].rate, codec.latent_channels / codec.factor**2)
    which = "of this rate" if same else "of the nearest rate"
    return Table(
        name="published", title=f"Published codecs {which}, on other images",
        definition="As their pages give them, of validation images of that side; PSNR in dB. Other images and other "
        "protocols move such numbers by 2 dB and more: they show where a codec may get, no more.",
        columns=("", "latent", "images, side", "PSNR ↑", "SSIM ↑", "LPIPS ↓", "rFID ↓"), rows=tuple(rows),
        notes=tuple(f"[{i + 1}] {page.address}: {page.protocol}" for i, page in enumerate(pages)),
    )  # fmt: skip


def _verdict(codec: LatentCodec, comparison: Comparison, published: Sequence[PublishedResult]) -> Verdict:
    rows = comparison.rows
    if not rows[CODEC]:
        return Verdict(
            name=NAME, level="bad", statement=f"Reconstruction cannot be measured: {NOTHING}.",
            advice="See the range of activations, and the images without a finite latent or reconstruction.",
        )  # fmt: skip
    ours = _mean(rows[CODEC], "psnr")[0]
    if ours is None:
        return Verdict(name=NAME, level="good", statement="Reconstructions equal their images.")
    f, colours = codec.factor, codec.model.config.in_channels
    fair = codec.latent_channels >= colours  # averages do not have more numbers
    averaging = f"averaging {f} x {f} pixels ({_shown(rows[AVERAGING])})"
    psnr = f"PSNR is {ours:.1f} dB"
    over_averaging = compare(rows[CODEC], rows[AVERAGING]).get("psnr")
    alone = over_averaging is not None and over_averaging.images == 1
    if fair and not alone and not _beats(over_averaging):
        worse = "worse than" if _beats(over_averaging, -1) else "no better than"
        return Verdict(
            name=NAME, level="bad",
            statement=f"Reconstruction is {worse} {averaging}, which keeps {counted(colours, 'number')} a position, "
            f"where the codec has {codec.latent_channels}: {psnr}.",
            advice=f"The decoder has learned too little. {LONGER} If it does not, lower optimizer.lr.",
        )  # fmt: skip
    if alone or not rows[PCA]:
        statement = f"{psnr}, averages of {f} x {f} pixels have {_shown(rows[AVERAGING])}."
        why = "One image does not tell which is better." if alone else f"There is no PCA beside it: {ONE_IMAGE}."
        return Verdict(name=NAME, level="unknown", statement=f"{statement} {why}")
    pca = f"PCA of equal rate ({_shown(rows[PCA])}), the best linear codec"
    over_pca = compare(rows[CODEC], rows[PCA])
    if _beats(over_pca.get("psnr")):
        statement = f"Reconstruction is better than {pca}: {psnr}.{_among(ours, published)}"
        return Verdict(name=NAME, level="good", statement=statement)
    place = "worse than" if _beats(over_pca.get("psnr"), -1) else "no better than"
    above = f" It is better than {averaging}." if fair else ""
    nearer = _beats(over_pca.get("lpips_vgg"), -1)
    looks = " It looks nearer to the image than PCA does (LPIPS)." if nearer else ""
    trade = " Less loss.perceptual.weight or discriminator.weight gives PSNR for looks." if nearer else ""
    return Verdict(
        name=NAME, level="warning", statement=f"Reconstruction is {place} {pca}: {psnr}.{above}{looks}",
        advice=f"A network can do better. {LONGER}{trade}",
    )  # fmt: skip


def _shown(rows: Sequence[MeasuredImage]) -> str:
    value = _mean(rows, "psnr")[0]
    return "equal to the images" if value is None else f"{value:.1f} dB"


def _beats(difference: PairedDifference | None, sign: int = 1) -> bool:
    """Whether the codec's values are above the other's (sign 1) or below them (-1), beyond the noise of the images.

    False for one image, whose noise nobody knows.
    """
    if difference is None or difference.low is None or difference.high is None:
        return False
    return sign * difference.low > 0 and sign * difference.high > 0


def _among(ours: float, published: Sequence[PublishedResult]) -> str:
    """Where a PSNR lies among published ones, in a sentence; nothing where none is published."""
    known = sorted((one for one in published if one.psnr is not None), key=lambda one: one.psnr or 0.0)
    if not known:
        return ""
    low, high = known[0], known[-1]
    span = f"{low.psnr:.1f} dB ({low.codec})" + (f" to {high.psnr:.1f} dB ({high.codec})" if high != low else "")
    assert low.psnr is not None and high.psnr is not None
    place = "between PCA and" if ours < low.psnr else "above" if ours > high.psnr else "among"
    return f" It lies {place} published codecs of such a rate, on other images and by other protocols: {span}."

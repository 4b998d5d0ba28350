"""python -m tools.bench NAME: measures the speed of a part, beside what people use today. --help lists the parts."""

from __future__ import annotations

import typer

from ldm_vae.ending import told_in_a_line
from ldm_vae.waiting import choose_waiting

choose_waiting()  # as the trainer does, before torch is imported

from tools.bench.load import bench_load  # noqa: E402

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command("load")(bench_load)


@app.callback()
def bench() -> None:
    """Measure the speed of a part."""


if __name__ == "__main__":
    with told_in_a_line("bench"):
        app()

"""wardround-sim bench: what the parts cost on this machine.

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

from pathlib import Path
from typing import Annotated

import typer

from common.console.cli import JsonFlag, configure_logging, new_app, progress, show_table
from simulations.commands.options import ThreadsOption
from simulations.commands.preparation import use_threads

bench_app = new_app("Measure on this machine what the parts cost.")


@bench_app.command("data")
def bench_data(
    series: Annotated[int, typer.Option("--series", min=1, help="CT series of 50 slices to generate.")] = 20,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns; the figures are medians.")] = 3,
    threads: ThreadsOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Prepare generated CT slices with Wardround, with MONAI and from the cache, by turns.

    Example: wardround-sim bench data --series 4
    """
    configure_logging()
    import tempfile  # noqa: PLC0415

    from simulations.bench import reading as bench  # noqa: PLC0415

    use_threads(threads)
    with progress("series and turns", series + repeats) as advance, tempfile.TemporaryDirectory() as folder:
        figures = bench.measure(Path(folder), series=series, repeats=repeats, progress=advance)
    ours = figures[0]
    rows = [[one.name, one.cpu_s_per_1000, one.images_per_cpu_s, one.cpu_s / ours.cpu_s] for one in figures]
    columns = ["way", "CPU s per 1000 images", "images per CPU s", f"times {ours.name}"]
    show_table(f"{ours.images} CT slices, 512 x 512 to 256 x 256", columns, rows, as_json=as_json)


@bench_app.command("privacy")
def bench_privacy(
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns; the times are medians.")] = 5,
    threads: ThreadsOption = 1,
    as_json: JsonFlag = False,
) -> None:
    """Make plain steps, Opacus' and our private ones, in 2D and 3D, by turns.

    Example: wardround-sim bench privacy --repeats 9
    """
    configure_logging()
    from simulations.bench import private_steps as bench  # noqa: PLC0415

    use_threads(threads)
    rows = []
    for case in bench.CASES:
        with progress(case.name, repeats) as advance:
            figures = bench.measure(case, repeats=repeats, progress=advance)
        plain = figures[0]
        rows += [
            [
                case.name,
                one.way,
                one.cpu_s,
                one.cpu_s / plain.cpu_s,
                one.memory / 2**20,
                one.memory / plain.memory,
                one.noise_s / one.cpu_s,
            ]
            for one in figures
        ]
    columns = ["step", "way", "CPU s", f"times {plain.way}", "memory MiB", "times its memory", "noise share"]
    show_table("One step, its memory, and the share of noise", columns, rows, as_json=as_json)

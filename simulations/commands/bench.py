"""wardround-sim bench: what the parts cost on this machine.

Heavy modules are imported inside the commands: see common/console/cli.py.
"""

import logging
import statistics
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from common.console.cli import JsonFlag, configure_logging, new_app, progress, show_table
from common.errors import FederationError
from common.text import sized
from simulations.api.preparation import use_threads
from simulations.commands.options import BackendOption, ThreadsOption

_log = logging.getLogger(__name__)

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


@bench_app.command("training")
def bench_training(
    *,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds that count; the figures are medians.")] = 9,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Of each of the four clients in a round.")] = 10,
    small: Annotated[bool, typer.Option("--small", help="A network of two levels and small images.")] = False,
    with_ray: Annotated[bool, typer.Option("--ray", help="Also on a Ray cluster of this machine.")] = False,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also by the simulators of Flower, NVFlare and pfl-research that are here.")
    ] = False,
    nvflare: Annotated[
        Path | None, typer.Option("--nvflare", envvar="WARDROUND_NVFLARE", help="Python that has NVFlare; for --peers.")
    ] = None,
    pfl: Annotated[
        Path | None, typer.Option("--pfl", envvar="WARDROUND_PFL", help="Python that has pfl-research; for --peers.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Train four clients by a bare loop, in one process and in two, by our backends, and by others, by turns.

    A way whose model after the first round is another than the bare loop's is no comparison: the command says so, and
    ends with an error. `docs/benchmarks.md` says how the others are installed.

    Example: wardround-sim bench training --rounds 5 --peers
    """
    configure_logging()
    import tempfile  # noqa: PLC0415

    from simulations.bench import training as bench  # noqa: PLC0415
    from simulations.bench.peers.peer import NVFLARE, PFL, children_of  # noqa: PLC0415

    use_threads(1)
    size: dict[str, Any] = {"channels": (4, 8), "rows": 32, "batch": 2, "patients": 6} if small else {}
    if peers:
        pythons = {peer.way: python for peer, python in ((NVFLARE, nvflare), (PFL, pfl)) if python is not None}
        size["others"] = partial(children_of, pythons=pythons, say=_log.warning)
    size["ways"] = (*bench.WAYS, bench.RAY) if with_ray else bench.WAYS
    with progress("turns", rounds) as advance, tempfile.TemporaryDirectory() as folder:
        figures = bench.measure(Path(folder), rounds=rounds, steps=steps, progress=advance, **size)
    against = figures[1]
    rows: list[list[object]] = []
    for one in figures:
        ratios = one.times(against)
        spread = [min(one.seconds), max(one.seconds)]
        figures_of = [statistics.median(one.seconds), *spread, statistics.median(one.cpu_s), one.memory / 2**20]
        rows.append([one.way, *figures_of, one.headline, one.first_s, one.apart, one.drifted])
        rows[-1] += [statistics.median(one.outside_s) if one.outside_s else None, *ratios]
    columns = [
        "way",
        "seconds",
        "least",
        "most",
        "CPU s",
        "memory MiB",
        bench.HEADLINE,
        "first round s",
        "apart",
        "in the end",
        "CPU s between turns",
    ]
    columns += [f"times {what}" for what in ("seconds", "CPU s", "memory")]
    show_table(f"A round of {bench.CLIENTS} clients; times {against.way}", columns, rows, as_json=as_json)
    if others := [one for one in figures if not one.is_the_same]:
        told = ", ".join(f"{one.way} ({one.apart:.2g})" for one in others)
        raise FederationError(
            f"another model than the bare loop's was made by: {told}; at most {bench.TOLERANCE:g} of its move may lie "
            "between them. Their figures are of other work: leave them out."
        )


@bench_app.command("aggregation")
def bench_aggregation(
    updates: Annotated[
        list[int] | None, typer.Option("--updates", min=1, help="Of so many sites; may be given again. [4, 16, 32]")
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns; the figures are medians.")] = 9,
    threads: ThreadsOption = 1,
    small: Annotated[bool, typer.Option("--small", help="A model of 20 kB in place of 30 MB.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Make one model of many, as Flower does it and as we do, by turns.

    Example: wardround-sim bench aggregation --updates 4
    """
    configure_logging()
    from simulations.bench import aggregation as bench  # noqa: PLC0415
    from simulations.bench.models import CHANNELS, SMALL  # noqa: PLC0415

    use_threads(threads)
    rows: list[list[object]] = []
    for count in updates or (4, 16, 32):
        with progress(f"turns with {count} updates", repeats) as advance:
            figures = bench.measure(
                updates=count, repeats=repeats, channels=SMALL if small else CHANNELS, progress=advance
            )
        against = figures[0]
        for one in figures:
            wall, *_ = one.rates(one.wall_s)
            rows.append([count, one.way, *one.rates(one.cpu_s), wall, *one.times(against), one.memory / one.size])
    columns = ["updates", "way", "GB per CPU s", "least", "most", "GB per s", "times as fast", "on the wall", "models"]
    title = f"Of a model of {sized(against.size)}; times as fast as {against.way}; models held at most"
    show_table(title, columns, rows, as_json=as_json)


@bench_app.command("round")
def bench_round(
    clients: Annotated[
        list[int] | None, typer.Option("--clients", min=2, help="So many; may be given again. [4, 32]")
    ] = None,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds that count; the figures are medians.")] = 15,
    as_json: JsonFlag = False,
) -> None:
    """Make rounds with nearly nothing to train, by a bare loop and by our backends, by turns.

    Example: wardround-sim bench round --clients 4
    """
    configure_logging()
    import tempfile  # noqa: PLC0415

    from simulations.bench import round_cost as bench  # noqa: PLC0415

    use_threads(1)
    rows: list[list[object]] = []
    for count in clients or (4, 32):
        with progress(f"turns with {count} clients", rounds) as advance, tempfile.TemporaryDirectory() as folder:
            costs = bench.measure(Path(folder), clients=count, rounds=rounds, progress=advance)
        for one in costs:
            beyond = [one.beyond_wall_ms, one.beyond_cpu_ms]
            rows.append([count, one.way, one.wall_ms, one.cpu_ms, one.message_ms, *beyond])
    columns = ["clients", "way", "ms", "CPU ms", "CPU ms a client", "beyond the bare loop ms", "CPU ms beyond it"]
    show_table("A round of one step each", columns, rows, as_json=as_json)


@bench_app.command("wire")
def bench_wire(
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Turns; the figures are medians.")] = 9,
    threads: ThreadsOption = 1,
    small: Annotated[bool, typer.Option("--small", help="A model of 20 kB in place of 30 MB.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Write, check and read a request and an update, as Flower does it and as we do, by turns.

    Example: wardround-sim bench wire --repeats 5
    """
    configure_logging()
    from simulations.bench import wire as bench  # noqa: PLC0415
    from simulations.bench.models import CHANNELS, SMALL  # noqa: PLC0415

    use_threads(threads)
    with progress("turns", repeats) as advance:
        figures = bench.measure(repeats=repeats, channels=SMALL if small else CHANNELS, progress=advance)
    memory, flower = figures[0], {(one.message, one.step): one for one in figures if one.way == bench.FLOWER}
    rows: list[list[object]] = []
    for one in figures:
        theirs = flower.get((one.message, one.step))
        times = None if theirs is None else one.times(theirs)
        rows.append([one.message, one.step, one.way, *one.ms_per_30_mb, one.times(memory), times])
    columns = ["message", "step", "way", "CPU ms per 30 MB", "least", "most", f"times {memory.step}", "times Flower"]
    show_table(f"A model of {sized(memory.size)} on its way", columns, rows, as_json=as_json)


@bench_app.command("sites")
def bench_sites(
    sites: Annotated[int, typer.Option("--sites", min=2, help="Sites at one coordinator.")] = 100,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="Rounds to measure; one more is made before.")] = 5,
    idle: Annotated[float, typer.Option("--idle", min=1, help="Seconds to look at all of them at rest.")] = 30.0,
    small: Annotated[bool, typer.Option("--small", help="A model of 20 kB in place of 2 MB.")] = False,
    as_json: JsonFlag = False,
) -> None:
    """Start a coordinator on this machine, and sites that do no work, and make rounds with them.

    Example: wardround-sim bench sites --sites 12 --rounds 2
    """
    configure_logging()
    import tempfile  # noqa: PLC0415

    from simulations.bench import many_sites as bench  # noqa: PLC0415

    channels = bench.SMALL if small else bench.CHANNELS
    with progress("rounds", rounds) as advance, tempfile.TemporaryDirectory() as folder:
        figures = bench.measure(
            Path(folder), sites=sites, rounds=rounds, idle_s=idle, channels=channels, progress=advance
        )
    title = f"{sites} sites at one coordinator, {rounds} rounds"
    show_table(title, ["figure", "value", "unit"], [list(row) for row in figures.rows()], as_json=as_json)


@bench_app.command("scaling")
def bench_scaling(
    *,
    sites: Annotated[
        list[int] | None,
        typer.Option("--sites", min=2, help="Sites of a run; may be given several times. Default: 10, 100, 1000."),
    ] = None,
    drawn: Annotated[
        int | None, typer.Option("--drawn", min=2, help="One more run, of so many sites, of which a round asks some.")
    ] = None,
    per_round: Annotated[int, typer.Option("--per-round", min=2, help="How many it asks.")] = 100,
    rounds: Annotated[int, typer.Option("--rounds", min=2, help="Of each run; the first does not count.")] = 4,
    backend: BackendOption = None,
    as_json: JsonFlag = False,
) -> None:
    """Simulate ten, a hundred and a thousand sites with tiny images: seconds a round, and memory of all processes.

    Example: wardround-sim bench scaling --sites 10 --sites 100
    """
    configure_logging()
    import tempfile  # noqa: PLC0415

    from simulations.bench import scaling as bench  # noqa: PLC0415

    sizes: list[tuple[int, int | None]] = [(one, None) for one in sites or (10, 100, 1000)]
    sizes += [(drawn, per_round)] if drawn else []
    with progress("runs", len(sizes)) as advance, tempfile.TemporaryDirectory() as folder:
        figures = bench.measure(Path(folder), sizes, rounds=rounds, backend=backend, progress=advance)
    rows: list[list[object]] = []
    for one in figures:
        spread = [min(one.seconds[1:]), max(one.seconds[1:])]
        rows.append([one.sites, one.asked, one.round_s, *spread, one.scoring_s, one.opening_s, one.memory / 2**20])
    columns = ["sites", "asked", "seconds a round", "least", "most", "scores of all s", "opening s", "memory MiB"]
    show_table(f"Simulated sites, {rounds - 1} rounds", columns, rows, as_json=as_json)

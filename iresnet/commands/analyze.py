"""``iresnet analyze``: estimators, bounds, inverses and latents of a run against what is exact, proved or claimed."""

__all__ = ["analyze"]

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter, validators
from rich.table import Table

from iresnet.bars import progress
from iresnet.commands.arguments import Count, DataDir, DeviceName, RunFolder, Seed, flow_of, load_run
from iresnet.commands.contexts import Context, at_context, open_run_at
from iresnet.console import say
from iresnet.errors import RunError
from iresnet.files import distinct_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from iresnet.analysis import InverseAnalysis, LatentAnalysis, LipschitzAnalysis, LogDetAnalysis
    from iresnet.runs import Run

Runs = Annotated[list[Path], Parameter(name="RUN", help="Run folders, made by iresnet train.", negative="")]

COEFFICIENTS = (0.5, 0.7, 0.9, 1.2)
"""Coefficients of the rescaled copies of a single run; nothing is proved of the last."""

analyze = App(
    name="analyze",
    help="Analyze a trained model: analysis/NAME.json and analysis/NAME.png in its run folder, and a table.",
)


@analyze.command
def logdet(
    run: RunFolder,
    *,
    n: Count | None = None,
    draws: Annotated[int, Parameter(validator=validators.Number(gte=2))] = 64,
    context: Context = None,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
) -> None:
    """Measure bias and standard deviation of log-determinant estimators against the exact value.

    Power series with 1 to 10 terms, Russian roulette, and Krylov with 1 to 6 steps, for values and for the vectors that
    carry the gradient, in float64. The exact value is that of the dense Jacobian of each block, up to 1024 dimensions;
    above, a converged Krylov value, whose error is stated.

    Args:
        run: Run folder.
        n: Examples; by default as many as take about a minute (3 of MNIST, 32 of digits).
        draws: Probes for each block and example.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of examples, dequantization noise and probes.
    """
    from iresnet.analysis import analyze_logdet, bijection_of, dequantized_examples
    from iresnet.analysis.figures import draw_logdet
    from iresnet.bijections import ResidualBlock
    from iresnet.devices import device_of

    folder, model, dataset, data = open_run_at(run, data_dir, split, device, context)
    bijection = bijection_of(model).double()
    n = n or max(1, min(32, 3072 // data.x[0].numel()))  # about a minute
    x = dequantized_examples(data, n, levels=dataset.levels, seed=seed).x.to(device_of(model))
    blocks = sum(isinstance(module, ResidualBlock) for module in bijection.modules())
    with progress("blocks at examples", blocks * len(x)) as advance:
        analysis = analyze_logdet(bijection, x, draws=draws, seed=seed, progress=advance)
    say(str(analysis))
    say(_estimator_table(analysis))
    _save(folder, "logdet", analysis, draw_logdet(analysis), {"split": split, "seed": seed})


def _estimator_table(analysis: "LogDetAnalysis") -> Table:
    table = _table("estimator", "products", "bias, nats", "sd", "bits/dim", "gradient")
    for row in analysis.rows:
        name = row.family if row.size is None else f"{row.family} {row.size}"
        bias, bits = f"{row.bias:.3g} ± {row.bias_error:.1g}", f"{row.bias / analysis.nats_per_bit:.1e}"
        table.add_row(name, f"{row.products:.3g}", bias, f"{row.sd:.3g}", bits, f"{row.gradient_error:.2g}")
    return table


@analyze.command
def lipschitz(run: RunFolder, *, context: Context = None, device: DeviceName = "auto") -> None:
    """Compute singular values of every layer, with bounds from below and above.

    Spectra are exact for dense layers, 1x1 convolutions, and convolutions of a small enough matrix; else those of the
    circular convolution that bounds the zero-padded one.

    Args:
        run: Run folder.
    """
    from iresnet.analysis import analyze_lipschitz
    from iresnet.analysis.figures import draw_lipschitz
    from iresnet.analysis.spectra import linear_layers

    folder, model, inputs = load_run(run, device)
    model, _ = at_context(model, inputs, context)
    with progress("layers", len(linear_layers(model, inputs.shape))) as advance:
        analysis = analyze_lipschitz(model, inputs.shape, progress=advance)
    say(_layer_table(analysis))
    say(_block_table(analysis))
    say(str(analysis))
    _save(folder, "lipschitz", analysis, draw_lipschitz(analysis), {})


def _layer_table(analysis: "LipschitzAnalysis") -> Table:
    table = _table("layer", "kind", "coeff", "own", "lower", "upper", "median", "least", "values")
    for row in analysis.layers:
        values = row.singular_values  # descending
        median, least = (values[len(values) // 2], values[-1]) if values else (None, None)
        numbers = (row.estimate, row.lower, row.upper, median, least)
        coeff = "none" if row.coeff is None else f"{row.coeff:g}"
        cells = ("none" if number is None else f"{number:.4f}" for number in numbers)
        table.add_row(_short(row.name), row.kind, coeff, *cells, row.spectrum)
    return table


def _block_table(analysis: "LipschitzAnalysis") -> Table:
    table = _table("block", "lower", "upper", "")
    for row in analysis.blocks:
        verdict = "ok" if row.upper < 1 else "NOT CERTIFIED"
        table.add_row(_short(row.name), f"{row.lower:.4f}", f"{row.upper:.4f}", verdict)
    return table


def _short(name: str) -> str:
    """Shorten the path of a module, which is in a bijection always."""
    return name.replace("bijections.", "").replace("bijection.", "")


@analyze.command
def inverse(
    runs: Runs,
    *,
    coeff: Annotated[
        list[float] | None, Parameter(negative="", validator=validators.Number(gt=0), consume_multiple=True)
    ] = None,
    out: Path | None = None,
    n: Count = 8,
    context: Context = None,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
) -> None:
    """Measure errors of inverses against iterations, beside the rate that the certificate proves.

    Each of several runs, such as those of several coefficients and the unconstrained twin, is a curve. Of a single run
    there are also curves of copies whose layers are rescaled to other coefficients, without training. In float64.

    Args:
        runs: Run folders.
        coeff: Coefficients of the rescaled copies of a single run; 0.5 0.7 0.9 1.2 by default.
        out: Folder in which to write analysis/inverse.*, in place of the first run's.
        n: Examples.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of examples and dequantization noise.
    """
    from iresnet import analysis
    from iresnet.analysis.figures import draw_inverse
    from iresnet.analysis.inverses import SOLVERS, STEPS
    from iresnet.devices import device_of
    from iresnet.inputs import value_range
    from iresnet.runs import Run

    if coeff and len(runs) > 1:
        raise RunError("--coeff rescales the layers of a single run; give one run, or leave it out")
    coeffs = [] if len(runs) > 1 else coeff or COEFFICIENTS
    networks, solvers = [], ()
    with progress("curves", (len(runs) + len(coeffs) + len(SOLVERS)) * len(STEPS)) as advance:
        for path, name in zip(runs, distinct_names(runs), strict=True):
            _, model, dataset, data = open_run_at(path, data_dir, split, device, context)
            bijection = analysis.bijection_of(model).double()
            x = analysis.dequantized_examples(data, n, levels=dataset.levels, seed=seed).x.to(device_of(model))
            options: dict[str, Any] = {
                "scale": value_range(data.x, dataset.levels),
                "progress": lambda done: advance(len(networks) * len(STEPS) + done),
            }
            networks.append(analysis.analyze_inverse(bijection, x, label=name, **options))
            own = networks[-1].coeff
            for other in coeffs if own is not None else ():
                if other != own:
                    with analysis.rescaled(bijection, other):
                        network = analysis.analyze_inverse(bijection, x, label="rescaled", **options)
                    networks.append(replace(network, coeff=other))
            if path == runs[0]:
                solvers = analysis.solver_curves(bijection, x, **options)
    result = analysis.InverseAnalysis(tuple(networks), solvers, n)
    say(_network_table(result))
    say(str(result))
    folder = Run.open(runs[0])
    about = {"runs": [str(path) for path in runs], "split": split, "seed": seed}
    _save(folder, "inverse", result, draw_inverse(result), about, target=Run(out) if out else folder)


def _network_table(analysis: "InverseAnalysis") -> Table:
    table = _table("network", "coeff", "bound", "to 1e-3", "to 1e-6", "in the end", "")
    for row in analysis.networks:
        steps = [row.curve.steps_to(error) for error in (1e-3, 1e-6)]
        reached = ("never" if step is None else str(step) for step in steps)
        coeff = "none" if row.coeff is None else f"{row.coeff:g}"
        table.add_row(row.label, coeff, f"{row.bound:.4f}", *reached, f"{row.curve.largest[-1]:.1e}", row.verdict)
    return table


@analyze.command
def latent(
    run: RunFolder,
    *,
    n: Count = 2000,
    context: Context = None,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    device: DeviceName = "auto",
) -> None:
    """Test whether latents are distributed as the base density claims, and project them on two directions.

    Of a classifier the features are projected: nothing is claimed of their distribution.

    Args:
        run: Run folder.
        n: Examples.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of examples and dequantization noise.
    """
    from iresnet.analysis import analyze_latent, dequantized_examples
    from iresnet.analysis.figures import draw_latent
    from iresnet.classifiers import Classifier
    from iresnet.devices import device_of

    folder, model, dataset, data = open_run_at(run, data_dir, split, device, context)
    if isinstance(model, Classifier):
        encode, base = model.features, None
    else:
        encode, base = model.bijection, flow_of(model).base
    examples = dequantized_examples(data, n, levels=dataset.levels, seed=seed)
    x = examples.x.float().to(device_of(model))
    labels = examples.y if dataset.class_names else None  # contexts are none
    with progress("latents", len(x)) as advance:
        analysis = analyze_latent(encode, x, labels, base=base, progress=advance)
    if analysis.radius:
        say(_claim_table(analysis))
    say(str(analysis))
    _save(folder, "latent", analysis, draw_latent(analysis, dataset.class_names), {"split": split, "seed": seed})


def _claim_table(analysis: "LatentAnalysis") -> Table:
    table = _table("claim", "Kolmogorov-Smirnov", "p", "sample", "")
    tests = {f"elements of {scale.name}": scale.elements for scale in analysis.scales}
    if analysis.radius:
        tests["lengths"] = analysis.radius.test
    for name, test in tests.items():
        verdict = "REJECTED" if test.rejected else "ok"
        table.add_row(name, f"{test.statistic:.4f}", f"{test.p_value:.2g}", f"{test.n}", verdict)
    return table


# -- tables and files --------------------------------------------------------------------------------------------------


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for i, column in enumerate(columns):
        number = 0 < i < len(columns) - 1  # numbers are never broken into lines, names and verdicts may be
        table.add_column(column, justify="right" if number else "left", no_wrap=number, overflow="fold")
    return table


def _save(
    folder: "Run",
    name: str,
    analysis: Any,
    figure: "Figure",
    about: dict[str, Any],
    *,
    target: "Run | None" = None,
) -> None:
    """Write analysis/NAME.png and .json, with the hash of the weights."""
    from iresnet.pictures import png, rendered

    target = target or folder
    target.write_file(f"analysis/{name}.png", png(rendered(figure)))
    tree = {"model_sha256": folder.weights_sha256(), **about, **analysis.to_dict()}
    path = target.write_json(f"analysis/{name}.json", tree)
    say(f"wrote {path} and {path.with_suffix('.png')}")

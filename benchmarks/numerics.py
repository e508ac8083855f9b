"""Bias, standard deviation and cost of log-determinant estimators against dense algebra: tables of docs/numerics.md.

python benchmarks/numerics.py runs/fashion-mnist-density-small runs/mnist-density-small --data-dir ~/data
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib
from estimator_errors import closed_form_bias, gradients, reports, seconds, spectrum, values
from pages import PAGE, Results, arguments, insert_all, number, save, table
from subjects import Subject, contracting, exact_blocks, from_run

matplotlib.use("Agg")
import matplotlib.pyplot as plt

PICTURE = PAGE.parent / "pictures" / "numerics.png"
BASELINE, OURS = "PowerSeries 5, Gaussian", "Krylov 5"


def measure(subject: Subject, *, probes: int, gradient_images: int) -> dict[str, Any]:
    """Take all measurements of one model."""
    steps: dict[str, Callable[[], Any]] = {
        "spectrum": lambda: spectrum(subject, images),
        "values": lambda: values(images, probes),
        "series": lambda: {f"PowerSeries {n}": closed_form_bias(images, n) for n in (2, 3, 5, 10, 20)},
        "reports": lambda: reports(subject, images, probes // 4),
        "gradients": lambda: gradients(subject, images[:gradient_images]),
        "seconds": lambda: seconds(subject),
    }
    start = time.process_time()
    images = [list(exact_blocks(subject.flow, x)) for x in subject.x.split(1)]
    results: dict[str, Any] = {
        "dims": subject.x[0].numel(),
        "blocks": len(images[0]),
        "images": len(images),
        "gradient_images": gradient_images,
        "probes": probes,
    }
    for name, step in steps.items():
        results[name] = step()
        print(f"{subject.name}: {name} after {time.process_time() - start:.0f} s", flush=True)
    check_series(results)
    return results


def check_series(results: dict[str, Any]) -> None:
    """Check that the sampled bias of the power series is the one that follows from the eigenvalues."""
    for name, exact in results["series"].items():
        for probe in ("Gaussian", "Rademacher"):
            row = results["values"][f"{name}, {probe}"]
            assert abs(row["bias"] - exact) < 5 * row["bias_error"], (name, probe, row, exact)


# -- tables ----------------------------------------------------------------------------------------------------------


def by_model(results: Results, key: str, titles: Sequence[str], cells: Callable[[dict], Sequence[str]]) -> str:
    """Format the results under a key with a row for each estimator and columns for each model."""
    header = ["estimator", *(f"{model}: {title}" for model in results for title in titles)]
    names = next(iter(results.values()))[key]
    return table(header, ([name, *(c for r in results.values() for c in cells(r[key][name]))] for name in names))


def spectrum_table(results: Results) -> str:
    def interval(low: float, high: float) -> str:
        return f"{low:.2f} to {high:.2f}"

    rows = []
    for model, of in results.items():
        for i, row in enumerate(of["spectrum"], start=1):
            cells = (interval(row["least"], row["largest"]), *(f"{row[key]:.2f}" for key in ("norm", "bound")))
            rows.append([f"{model}, block {i}", *cells, f"{row['logdet']:.1f}"])
    return table(["block", "eigenvalues of J", "norm of J", "certified bound", "mean log-determinant"], rows)


def value_table(results: Results) -> str:
    def cells(row: dict[str, float]) -> list[str]:
        return [f"{number(row['bias'])} ± {number(row['bias_error'], 1)}", number(row["sd"], 3)]

    return by_model(results, "values", ["bias", "sd"], cells)


def gradient_table(results: Results) -> str:
    def cells(row: dict[str, float]) -> list[str]:
        return [f"{number(row['bias'])} ± {number(row['noise'], 1)}", number(row["sd"])]

    return by_model(results, "gradients", ["bias", "sd"], cells)


def report_table(results: Results) -> str:
    def cells(row: dict[str, float]) -> list[str]:
        bias = f"{number(row['bias'])} ± {number(row['bias_error'], 1)}"
        return [f"{number(row['sd'])} / {number(row['reported_sd'])}", f"{bias} / {number(row['reported_bias'])}"]

    return by_model(results, "reports", ["sd, true / reported", "bias, true / reported"], cells)


def time_table(results: Results) -> str:
    products = next(iter(results.values()))["values"]
    header = ["estimator", "products", *(f"{model}: {what}" for model in results for what in ("density", "step"))]
    rows = []
    for name in products:
        ratios = [
            r["seconds"][name][w] / r["seconds"][BASELINE][w] for r in results.values() for w in ("density", "step")
        ]
        rows.append([name, number(products[name]["products"]), *(f"{ratio:.2f}" for ratio in ratios)])
    return table(header, rows)


def ratio_table(results: Results) -> str:
    """Format the quotients of bias and variance of the method of 2019 by those of Krylov with as many products."""
    rows = []
    for model, of in results.items():
        value, gradient = (
            {key: of[quantity][BASELINE][key] / of[quantity][OURS][key] for key in ("bias", "sd")}
            for quantity in ("values", "gradients")
        )
        cells = (abs(value["bias"]), value["sd"] ** 2, gradient["bias"], gradient["sd"] ** 2)
        rows.append([model, *(number(cell) for cell in cells)])
    return table(
        ["model", "bias of the value", "variance of the value", "bias of the gradient", "variance of the gradient"],
        rows,
    )


TABLES = {
    "spectrum": spectrum_table,
    "values": value_table,
    "ratios": ratio_table,
    "gradients": gradient_table,
    "reports": report_table,
    "times": time_table,
}

# -- figure ----------------------------------------------------------------------------------------------------------

LINES = {  # colors that color-blind people can tell apart, and a marker each
    "PowerSeries, Gaussian": ("#E69F00", "s", "--"),
    "PowerSeries, Rademacher": ("#0072B2", "o", "-."),
    "Krylov": ("#009E73", "^", "-"),
    "RussianRoulette": ("#CC79A7", "D", ""),
}


def draw(results: Results) -> None:
    """Draw absolute bias and standard deviation against the number of products, one column a model."""
    figure, axes = plt.subplots(2, len(results), figsize=(4 * len(results), 6.4), sharex=True, squeeze=False)
    digits = str.maketrans("", "", "0123456789")
    for column, (model, of) in zip(axes.T, results.items(), strict=True):
        rows: dict[str, list[dict[str, float]]] = {label: [] for label in LINES}
        for name, row in of["values"].items():
            rows[name.translate(digits).replace(" ,", ",").strip()].append(row)
        for label, (color, marker, style) in LINES.items():
            x = [row["products"] for row in rows[label]]
            look = {"color": color, "marker": marker, "linestyle": style, "markersize": 6}
            if label != "RussianRoulette":  # without bias
                column[0].plot(x, [abs(row["bias"]) for row in rows[label]], label=label, **look)
            column[1].plot(x, [row["sd"] for row in rows[label]], label=label, **look)
        column[0].set(title=f"{model} (D = {of['dims']})", xscale="log", yscale="log")
        column[1].set(xlabel="Jacobian products for each block", yscale="log", xticks=(2, 3, 5, 10, 20))
        column[1].xaxis.set_major_formatter("{x:.0f}")
        column[1].xaxis.set_minor_formatter("")
    axes[0, 0].set_ylabel("size of the bias, nats")
    axes[1, 0].set_ylabel("standard deviation of one probe, nats")
    axes[1, 0].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(PICTURE, dpi=110)


def main() -> None:
    options = arguments(__doc__, images=6)
    results = {}
    for run in options.runs:
        subject = from_run(run, options.data_dir, options.images)
        results[subject.name] = measure(subject, probes=192, gradient_images=2)
    results["contracting"] = measure(contracting(16), probes=512, gradient_images=4)
    save("numerics", results)
    draw(results)
    insert_all(TABLES, results)


if __name__ == "__main__":
    main()

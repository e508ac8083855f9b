"""Certificates of trained runs: Lipschitz constants bounded from above, and searched for from below.

python benchmarks/certification.py RUN... [--search-steps 100]
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict

import torch
from pages import insert_all, save, table

import iresnet as ir


def measure(run: str, search_steps: int) -> dict:
    """Certify a run, and measure the CPU time."""
    model = ir.load(run)
    start = time.process_time()
    certificate = ir.certify(model, search_steps=search_steps)
    return asdict(certificate) | {
        "certified": certificate.certified,
        "steps": max(block.steps() for block in certificate.blocks),
        "seconds": time.process_time() - start,
    }


def _range(bounds: Sequence[dict], key: str) -> str:
    values = [bound[key] for bound in bounds]
    return f"{min(values):.3f} to {max(values):.3f}"


def certificate_table(results: dict[str, dict]) -> str:
    """Format a row for each run."""
    header = [
        "run",
        "layers",
        "found",
        "bound",
        "blocks",
        "found",
        "bound",
        "steps to 1e-5",
        "network stretches",
        "and squeezes at most",
        "CPU s",
    ]
    rows = [
        [
            run,
            str(len(r["layers"])),
            *(_range(r["layers"], key) for key in ("lower", "upper")),
            str(len(r["blocks"])),
            *(_range(r["blocks"], key) for key in ("lower", "upper")),
            f"{r['steps']}",
            f"{r['network']['upper']:.3g} times" if r["network"] else "",
            f"{1 / r['network']['lower']:.2g} times" if r["network"] else "",
            f"{r['seconds']:.0f}",
        ]
        for run, r in results.items()
    ]
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+")
    parser.add_argument("--search-steps", type=int, default=100, help="steps of gradient ascent for each block")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {run.rstrip("/").split("/")[-1]: measure(run, options.search_steps) for run in options.runs}
    save("certificates", results)
    insert_all({"certificates": certificate_table}, results)


if __name__ == "__main__":
    main()

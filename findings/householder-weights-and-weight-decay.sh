#!/usr/bin/env bash
# torch 2.13.0: one step with weight decay turns a weight of parametrizations.orthogonal(..., "householder") into zeros.
#
# An orthogonal weight should stay orthogonal wherever an optimizer moves its parameter; with the maps "cayley" and
# "matrix_exp" it does. "householder" multiplies each column by the diagonal of the parameter, 1 or -1, after rounding it
# towards 0 to a whole number: no gradient moves the diagonal, but weight decay does, and 0.9999 becomes 0.
#
# Output seen with torch 2.13.0, Python 3.11, on a CPU:
#   householder, no weight decay: orthogonal
#   householder, weight decay 1e-04: all zeros
#   cayley, no weight decay: orthogonal
#   cayley, weight decay 1e-04: orthogonal
#   matrix_exp, no weight decay: orthogonal
#   matrix_exp, weight decay 1e-04: orthogonal
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/seen"
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

torch.manual_seed(0)
x = torch.randn(8, 4)


def kind(weight):
    if not weight.any():
        return "all zeros"
    return "orthogonal" if torch.allclose(weight.T @ weight, torch.eye(4), atol=1e-5) else "NOT orthogonal"


for name in ("householder", "cayley", "matrix_exp"):
    for decay in (0.0, 1e-4):
        layer = orthogonal(nn.Linear(4, 4, bias=False), orthogonal_map=name)
        optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, weight_decay=decay)
        layer(x).square().sum().backward()
        optimizer.step()
        print(f"{name}, {f'weight decay {decay:.0e}' if decay else 'no weight decay'}: {kind(layer.weight.detach())}")
PYTHON

diff "$folder/seen" - <<'EXPECTED'
householder, no weight decay: orthogonal
householder, weight decay 1e-04: all zeros
cayley, no weight decay: orthogonal
cayley, weight decay 1e-04: orthogonal
matrix_exp, no weight decay: orthogonal
matrix_exp, weight decay 1e-04: orthogonal
EXPECTED
echo "as expected: torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)')"

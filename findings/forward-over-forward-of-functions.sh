#!/usr/bin/env bash
# torch 2.13.0: forward mode inside forward mode leaves a term out of a torch.autograd.Function that has a right jvp.
#
# Implicit layers give their derivatives in a Function with backward and jvp. All second derivatives of x^3 = 8 at x = 2
# should be 6 x = 12. torch.func.jacfwd of jacfwd gives 0 for the Function, without an error; the three other orders, and
# the same formula without a Function, give 12.
#
# Output seen with torch 2.13.0, Python 3.11:
#   jacfwd of jacfwd: 12 of the formula, 0 of the function
#   jacrev of jacfwd: 12 of the formula, 12 of the function
#   jacfwd of jacrev: 12 of the formula, 12 of the function
#   jacrev of jacrev: 12 of the formula, 12 of the function
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'PYTHON' | tee "$folder/seen"
import torch
from torch.func import jacfwd, jacrev


class Cube(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x**3

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(*inputs)
        ctx.save_for_forward(*inputs)

    @staticmethod
    def backward(ctx, upstream):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * upstream

    @staticmethod
    def jvp(ctx, tangent):
        (x,) = ctx.saved_tensors
        return 3 * x**2 * tangent


x = torch.tensor(2.0)
for inner in (jacfwd, jacrev):
    for outer in (jacfwd, jacrev):
        formula, function = (float(outer(inner(f))(x)) for f in (lambda x: x**3, Cube.apply))
        print(f"{outer.__name__} of {inner.__name__}: {formula:.0f} of the formula, {function:.0f} of the function")
PYTHON

diff "$folder/seen" - <<'EXPECTED'
jacfwd of jacfwd: 12 of the formula, 0 of the function
jacrev of jacfwd: 12 of the formula, 12 of the function
jacfwd of jacrev: 12 of the formula, 12 of the function
jacrev of jacrev: 12 of the formula, 12 of the function
EXPECTED
echo "as expected: torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)')"

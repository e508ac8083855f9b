#!/usr/bin/env bash
# torch 2.13.0: the reverse-mode derivative of a forward-mode one is wrong through layer, instance and batch norms, solve
# and det.
#
# Estimators of log-determinants and of traces differentiate a Jacobian product: d/dx of w^T J(x) v. One would expect
# torch.func.jvp and torch.func.vjp to give the same, as they do for the product itself. Through native norms and linear
# algebra the gradient of jvp is another number, without an error; the gradient of vjp agrees with finite differences.
# The norms' forward-mode formulas seem to take what the forward pass saved (means, inverse deviations) for constants.
# Norms written out in elementary operations are right in both modes.
#
# Output seen with torch 2.13.0, Python 3.11:
#   layer_norm: of vjp right, of jvp WRONG
#   instance_norm: of vjp right, of jvp WRONG
#   batch_norm of the batch: of vjp right, of jvp WRONG
#   group_norm: of vjp right, of jvp right
#   layer norm written out: of vjp right, of jvp right
#   linalg.solve: of vjp right, of jvp WRONG
#   linalg.det: of vjp right, of jvp WRONG
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" -W ignore - <<'PYTHON' | tee "$folder/seen"
import torch
import torch.nn.functional as F
from torch.func import jvp, vjp

torch.manual_seed(0)
torch.set_default_dtype(torch.float64)


def square(x):
    return x @ x.mT + torch.eye(x.shape[-1])


def written_out(x):
    centered = x - x.mean(-1, keepdim=True)
    return centered * (centered.square().mean(-1, keepdim=True) + 1e-5).rsqrt()


maps = {
    "layer_norm": (lambda x: F.layer_norm(x, x.shape[-1:]), (2, 4, 6)),
    "instance_norm": (F.instance_norm, (2, 4, 3, 3)),
    "batch_norm of the batch": (lambda x: F.batch_norm(x, None, None, training=True), (4, 3)),
    "group_norm": (lambda x: F.group_norm(x, 2), (2, 4, 3, 3)),
    "layer norm written out": (written_out, (2, 4, 6)),
    "linalg.solve": (lambda x: torch.linalg.solve(square(x), x), (2, 4, 4)),
    "linalg.det": (lambda x: torch.linalg.det(square(x)), (2, 4, 4)),
}
for name, (f, shape) in maps.items():
    x, v, direction = (torch.randn(shape) for _ in range(3))
    w = torch.randn_like(f(x))
    products = {
        "vjp": lambda x: (vjp(f, x)[1](w)[0] * v).sum(),
        "jvp": lambda x: (jvp(f, (x,), (v,))[1] * w).sum(),
    }
    seen = []
    for kind, product in products.items():
        at = x.clone().requires_grad_()
        slope = (torch.autograd.grad(product(at), at)[0] * direction).sum()
        difference = (product(x + 1e-6 * direction) - product(x - 1e-6 * direction)) / 2e-6
        right = bool((slope - difference).abs() < 1e-4 * (1 + difference.abs()))
        seen.append(f"of {kind} {'right' if right else 'WRONG'}")
    print(f"{name}: {', '.join(seen)}")
PYTHON

diff "$folder/seen" - <<'EXPECTED'
layer_norm: of vjp right, of jvp WRONG
instance_norm: of vjp right, of jvp WRONG
batch_norm of the batch: of vjp right, of jvp WRONG
group_norm: of vjp right, of jvp right
layer norm written out: of vjp right, of jvp right
linalg.solve: of vjp right, of jvp WRONG
linalg.det: of vjp right, of jvp WRONG
EXPECTED
echo "as expected: torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)')"

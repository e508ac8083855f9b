#!/usr/bin/env bash
# normflows 1.7.3: in training mode, residual blocks do not return the log-determinant, and one weight stands for all.
#
# A residual block z = x + g(x) of normflows saves memory by default (`reduce_memory=True`): it computes the gradient of
# the log-determinant in the forward pass. One would expect the number that it returns to be the log-determinant all the
# same, and the gradient to be that of the loss, whatever weights the loss gives to samples.
#
# But the number is the series of the gradient, without the factors 1/k: for g(x) = x / 2 it is 1/3 a dimension, where
# log(1.5) = 0.405. So the `log_prob` of a flow in training is no log-density. And the backward pass multiplies the gradient
# of all samples by the upstream weight of the first: where that is 0, the gradient is 0.
#
# Output seen with normflows 1.7.3, torch 2.13.0, Python 3.11:
#   log-determinant over log(1.5), one probe, as it is: 0.822
#   with reduce_memory=False: 1.000
#   gradient where the first of two samples has weight 0, as it is: 0.000
#   with reduce_memory=False: 0.667
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 normflows==1.7.3

"$folder/venv/bin/python" - <<'PYTHON' 2>/dev/null | tee "$folder/seen"
import math

import torch
from normflows.flows import Residual
from torch import nn


class Half(nn.Module):
    """g(x) = a x, with a = 1/2."""

    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.tensor(0.5, dtype=torch.float64))

    def forward(self, x):
        return self.a * x


def run(weights, **options):
    torch.manual_seed(0)
    g = Half()
    block = Residual(g, n_power_series=60, exact_trace=False, brute_force=False, **options).double().train()
    torch.manual_seed(1)  # the probe
    _, logdet = block.inverse(torch.zeros(2, 1, dtype=torch.float64))
    (weights * logdet.flatten()).sum().backward()
    torch.manual_seed(1)
    probe = torch.randn(2, 1, dtype=torch.float64)
    return logdet.flatten().detach() / probe.square().flatten(), g.a.grad, probe.square().flatten()


second = torch.tensor([0.0, 1.0], dtype=torch.float64)
for options, words in (({}, "log-determinant over log(1.5), one probe, as it is"), ({"reduce_memory": False}, "with reduce_memory=False")):
    print(f"{words}: {float(run(second, **options)[0][0]) / math.log(1.5):.3f}")
for options, words in (({}, "gradient where the first of two samples has weight 0, as it is"), ({"reduce_memory": False}, "with reduce_memory=False")):
    _, gradient, squares = run(second, **options)
    print(f"{words}: {float(gradient / squares[1]):.3f}")
PYTHON

diff "$folder/seen" - <<'EXPECTED'
log-determinant over log(1.5), one probe, as it is: 0.822
with reduce_memory=False: 1.000
gradient where the first of two samples has weight 0, as it is: 0.000
with reduce_memory=False: 0.667
EXPECTED
echo "as expected: normflows $("$folder/venv/bin/python" -c 'from importlib.metadata import version; print(version("normflows"))')"

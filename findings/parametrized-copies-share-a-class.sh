#!/usr/bin/env bash
# torch 2.13.0: removing the spectral norm from a copy of a layer breaks the layer that was copied.
#
# A parametrized layer can be copied by `copy.deepcopy`, and one would expect `remove_parametrizations` of the copy, as one
# does to deploy a trained network, to leave the original as it was. But both share the class that torch made for the
# parametrized layer, and removing takes the attribute `weight` off that class: the original has its parameters, but no
# weight any more, and cannot be called.
#
# Output seen with torch 2.13.0, Python 3.11:
#   one class: True
#   the copy: torch.Size([1, 2])
#   the original: AttributeError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/seen"
import copy

import torch
from torch import nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

original = spectral_norm(nn.Linear(2, 2))
copied = copy.deepcopy(original)
print("one class:", type(copied) is type(original))
parametrize.remove_parametrizations(copied, "weight")
print("the copy:", copied(torch.ones(1, 2)).shape)
try:
    print("the original:", original(torch.ones(1, 2)).shape)
except AttributeError as error:
    print("the original:", type(error).__name__)
PYTHON

diff "$folder/seen" - <<'EXPECTED'
one class: True
the copy: torch.Size([1, 2])
the original: AttributeError
EXPECTED
echo "as expected: torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)')"

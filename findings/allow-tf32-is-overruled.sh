#!/usr/bin/env bash
# torch 2.13.0: switching TF32 off the older way does nothing once it was switched on for everything the newer way.
#
# After `torch.backends.fp32_precision = "tf32"` one would expect `torch.backends.cudnn.allow_tf32 = False` to keep cuDNN's
# convolutions in float32, or to be refused. It is accepted, and convolutions stay in TF32: their own setting becomes "none",
# which inherits from the setting of everything. Reading `allow_tf32` back then raises a RuntimeError. No GPU is needed to
# see it: the settings are those of the process.
#
# Output seen with torch 2.13.0, Python 3.11:
#   convolutions: tf32
#   reading allow_tf32: RuntimeError
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/seen"
import torch

torch.backends.fp32_precision = "tf32"
torch.backends.cudnn.allow_tf32 = False
print("convolutions:", torch.backends.cudnn.conv.fp32_precision)
try:
    print("reading allow_tf32:", torch.backends.cudnn.allow_tf32)
except RuntimeError as error:
    print("reading allow_tf32:", type(error).__name__)
PYTHON

diff "$folder/seen" - <<'EXPECTED'
convolutions: tf32
reading allow_tf32: RuntimeError
EXPECTED
echo "as expected: torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)')"

#!/usr/bin/env bash
# torch 2.13.0: the gradient of instance norm is wrong for a batch of one image, when what flows back has its channels
# last in memory.
#
# The order of an image in memory should change no number. With two images it does not. With one, a gradient that comes
# back from convolutions in channels-last order is read in the wrong order, without an error; the order of the input does
# not matter. Networks in channels-last memory meet it when they are evaluated on single images.
#
# Output seen with torch 2.13.0, Python 3.11, on a CPU:
#   1 image, gradient contiguous: right
#   1 image, gradient channels last: WRONG
#   2 images, gradient contiguous: right
#   2 images, gradient channels last: right
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6

"$folder/venv/bin/python" - <<'PYTHON' | tee "$folder/seen"
import torch
import torch.nn.functional as F

torch.manual_seed(0)


def gradient(x, upstream):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(F.instance_norm(x), x, upstream)[0]


for n in (1, 2):
    x, upstream = torch.randn(2, n, 4, 5, 3, dtype=torch.float64)
    expected = gradient(x, upstream)
    for order, name in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels last")):
        found = gradient(x, upstream.contiguous(memory_format=order))
        right = torch.allclose(found, expected)
        print(f"{n} image{'s' * (n > 1)}, gradient {name}: {'right' if right else 'WRONG'}")
PYTHON

diff "$folder/seen" - <<'EXPECTED'
1 image, gradient contiguous: right
1 image, gradient channels last: WRONG
2 images, gradient contiguous: right
2 images, gradient channels last: right
EXPECTED
echo "as expected: torch $("$folder/venv/bin/python" -c 'import torch; print(torch.__version__)')"

"""Invertible residual networks: models z = x + g(x) with Lip(g) < 1 that classify, estimate densities and generate."""

import sys
import warnings

import lazy_loader

from iresnet.renamed import OldModules

sys.meta_path.append(OldModules())

# In a notebook, tqdm asks for widgets when accelerate imports it; no bar of this package needs them.
warnings.filterwarnings("ignore", message="IProgress not found")

# The public names stand in __init__.pyi. They are imported at first use, so that `iresnet --help` does not wait for
# torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Export to ONNX: encode, decode, log-densities and logits, compared with torch before a file is put in place."""

__all__ = ["WHAT", "Exported", "draw_probes", "to_onnx"]

from iresnet.export.frozen import WHAT
from iresnet.export.onnx import Exported, draw_probes, to_onnx

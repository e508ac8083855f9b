"""Base of flows, classifiers and hybrids: their origin, and a short description."""

__all__ = ["Assembled"]

import html
import zlib
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from iresnet.bijections import (
    Bijection,
    Chain,
    FactorOut,
    InjectivePad,
    ResidualBlock,
    Squeeze,
    VariationalDequantization,
)
from iresnet.feedthrough import FeedThrough
from iresnet.lipschitz import lipschitz_layers

_whole = ContextVar("_whole", default=False)
"""Whether models are described with all of their modules."""

_COLUMNS = ("part", "events", "blocks", "coefficient", "parameters")


class Assembled(nn.Module):
    """Model that can be built again from names and numbers, where it was built so, and is described by a short table.

    Attributes:
        origin: arguments of :func:`iresnet.zoo.build`, or the recipe with facts about the data; None of a model that
            was put together by hand.

    Example:
        >>> import iresnet as ir
        >>> flow = ir.zoo.build("toy-mlp", shape=(2,), blocks=3, hidden=8)
        >>> print(flow)
        Flow: events of 2, 3 blocks, 358 parameters
        part   events  blocks  coefficient  parameters
        scale  2            3  0.9                 354
        base                                         4
        certificate unknown: iresnet.certify(model); all modules: print(model.tree())
        >>> flow.tree().count("LipschitzLinear")
        9
    """

    origin: Any = None
    _certified: tuple[int, str] | None = None

    def tree(self) -> str:
        """Describe all modules, line by line, as torch does."""
        token = _whole.set(True)
        try:
            return super().__repr__()
        finally:
            _whole.reset(token)

    def note_certificate(self, verdict: str) -> None:
        """Remember in a word what was proved of the present weights; the description tells it while they stay."""
        self._certified = (_checksum(self), verdict)

    def __repr__(self) -> str:
        if _whole.get():
            return super().__repr__()
        rows = [_COLUMNS, *(row.cells() for row in _rows(self))]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        right = (False, False, True, False, True)
        lines = [
            "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
            for row in rows
        ]
        return "\n".join([self._headline(), *(line.rstrip() for line in lines), self._last_line()])

    def _repr_html_(self) -> str:
        """Describe the model in a notebook."""
        head = "".join(f"<th>{name}</th>" for name in _COLUMNS)
        rows = "".join(
            f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row.cells())}</tr>" for row in _rows(self)
        )
        return (
            f"<p>{html.escape(self._headline())}</p><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
            f"<p>{html.escape(self._last_line())}</p>"
        )

    def _headline(self) -> str:
        shape = getattr(getattr(self, "flow", self), "event_shape", None)
        events = f"events of {_times(shape)}, " if shape else ""
        blocks = sum(row.blocks for row in _rows(self))
        return f"{type(self).__name__}: {events}{blocks} blocks, {_size([self]):,} parameters"

    def _last_line(self) -> str:
        checksum, verdict = self._certified or (None, "")
        if checksum is None or checksum != _checksum(self):
            verdict = "certificate unknown: iresnet.certify(model)"
        return f"{verdict}; all modules: print(model.tree())"


# -- rows --------------------------------------------------------------------------------------------------------------


@dataclass
class _Row:
    """Part of a model: the blocks that work on events of one shape, or what is no map between data and latents."""

    name: str
    events: str = ""
    parts: list[nn.Module] = field(default_factory=list)

    @property
    def is_scale(self) -> bool:
        """True for a part of the network."""
        return self.name.startswith("scale")

    @property
    def blocks(self) -> int:
        """Number of residual blocks in a scale; plain ones, which are no bijections, count too."""
        return self.is_scale * sum(_is_block(part) for part in self.parts)

    def cells(self) -> tuple[str, ...]:
        """Write the row."""
        blocks, coefficient = (str(self.blocks), self._coefficient()) if self.is_scale else ("", "")
        return self.name, self.events, blocks, coefficient, f"{_size(self.parts):,}"

    def _coefficient(self) -> str:
        layers = [layer for part in self.parts for layer in lipschitz_layers(part)]
        if not self.blocks or not all(layer.normalization.constrained for layer in layers):
            return "none"
        together = [m for part in self.parts for m in part.modules() if isinstance(m, FeedThrough)]
        inside = {layer for m in together for layer in lipschitz_layers(m)}
        found = sorted({m.coeff for m in together} | {m.normalization.coeff for m in layers if m not in inside})
        return " to ".join(f"{coeff:g}" for coeff in {found[0]: None, found[-1]: None}) if found else "none"


def _is_block(part: nn.Module) -> bool:
    """Return whether a part of a network is a block, or holds one, as inverses do; plain blocks are no bijections."""
    return not isinstance(part, Bijection) or any(isinstance(module, ResidualBlock) for module in part.modules())


def _rows(model: nn.Module) -> Iterator[_Row]:
    """Describe the scales of the network, and what else the model holds."""
    children = dict(model.named_children())
    flow = children.pop("flow", None)
    if isinstance(flow, Assembled):
        yield from _rows(flow)
    network = children.pop("bijection", None) or children.pop("network", None)
    if network is not None:
        parts = list(_walk(network))
        noise: list[nn.Module] = [part for part in parts if isinstance(part, VariationalDequantization)]
        if noise:
            yield _Row("dequantization", parts=noise)
        scales = _scales(parts[len(noise) :], getattr(model, "event_shape", None))  # it comes first
        for number, row in enumerate(scales, start=1):
            yield replace(row, name=f"scale {number}" if len(scales) > 1 else "scale")
    for name, child in children.items():
        yield _Row(name, parts=[child])


def _scales(parts: Sequence[nn.Module], shape: Sequence[int] | None) -> list[_Row]:
    """Divide the parts of a network where images get smaller or channels leave it, once there were blocks."""
    rows = [_Row("scale", _times(shape))]
    for part in parts:
        if isinstance(part, (Squeeze, FactorOut)) and rows[-1].blocks:
            rows.append(_Row("scale"))
        shape = _after(part, shape)
        if not isinstance(part, FactorOut):
            rows[-1].parts.append(part)
        if rows[-1].blocks == 0:
            rows[-1].events = _times(shape)
    return rows


def _walk(network: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a network in the order of the data; a FactorOut comes before those that it holds."""
    match network:
        case Chain():
            for part in network.bijections:
                yield from _walk(part)
        case nn.Sequential():
            for part in network:
                yield from _walk(part)
        case FactorOut():
            yield network
            yield from _walk(network.rest)
        case _:
            yield network


def _after(part: nn.Module, shape: Sequence[int] | None) -> Sequence[int] | None:
    """Return the shape of events after a part, None where it is not known."""
    match part, shape:
        case Squeeze(), (c, h, w):
            return 4 * c, h // 2, w // 2
        case InjectivePad(), (c, h, w):
            return c + part.channels, h, w
        case FactorOut(), _:
            return part.rest_channels, *part.shape[1:]
    return shape


def _times(shape: Sequence[int] | None) -> str:
    return "x".join(map(str, shape or ()))


def _size(modules: Sequence[nn.Module]) -> int:
    """Count parameters; those of lazy layers are not known before the first batch."""
    return sum(p.numel() for module in modules for p in module.parameters() if not is_lazy(p))


def _checksum(model: nn.Module) -> int:
    total = 0
    for tensor in model.state_dict().values():
        if isinstance(tensor, torch.Tensor) and not is_lazy(tensor) and not tensor.is_meta:
            total = zlib.crc32(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy().data, total)
    return total

"""Pictures of a run: samples over time, reconstructions, interpolations."""

__all__ = [
    "DamagedPictureError",
    "interpolation",
    "read_picture",
    "reconstructions",
    "samples",
]

import base64
import csv
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from iresnet.report.elements import Block, Cell, Fold, Gallery, Hint, Picture, Table, Text
from iresnet.report.formatting import evenly_spaced, finite, number, quantity
from iresnet.runs import Contents

# -- pictures ----------------------------------------------------------------------------------------------------------

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_MAX_BYTES = 8_000_000
"""Bytes of a picture, at most: a page must open in a moment."""


class DamagedPictureError(ValueError):
    """PNG file that is damaged, or too large."""


def read_picture(path: Path, alt: str, caption: str, *, pixels: bool = True) -> Picture | None:
    """Read a PNG file.

    Args:
        path: the file.
        alt: what it shows.
        caption: what stands below it.
        pixels: whether single pixels are to be seen.

    Returns:
        The picture, None when there is no such file.

    Raises:
        DamagedPictureError: says what is wrong with the file.
    """
    try:
        content = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise DamagedPictureError(f"{path.name} cannot be read: {error.strerror}") from error
    if len(content) > _MAX_BYTES:
        raise DamagedPictureError(f"{path.name} is too large for a page ({len(content) // 1_000_000} MB)")
    width, height = _size(content, path.name)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return Picture(uri, alt, caption, width, height, pixels)


def _size(content: bytes, name: str) -> tuple[int, int]:
    """Read width and height of a PNG, after checking that all of it is there."""
    start, kinds = len(_SIGNATURE), []
    while content.startswith(_SIGNATURE) and start + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, start)
        chunk = content[start + 4 : start + 8 + length]
        if zlib.crc32(chunk).to_bytes(4, "big") != content[start + 8 + length : start + 12 + length]:
            break
        kinds.append(chunk[:4])
        start += 12 + length
    if kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND":
        raise DamagedPictureError(f"{name} is damaged: it is not a whole PNG file")
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


# -- sections ----------------------------------------------------------------------------------------------------------

_MAX_PICTURES = 6
_MAX_ROWS, _MAX_COLUMNS = 5, 8


def samples(run: Contents) -> Iterator[Block]:
    """Show the last samples in full, and those of the snapshots before."""
    if run.kind == "classify":
        yield Text("A classifier has no density to draw samples from.")
        return
    snapshots = _snapshots(run, "samples", ".png")
    shown = evenly_spaced(snapshots, _MAX_PICTURES)
    by_command = run.folder.samples / "samples.png"
    if by_command.exists():
        temperature = finite(run.sampling.get("temperature"))
        how = "" if temperature is None else f", at temperature {temperature:g}"
        last = [(by_command, f"at the end, by iresnet sample{how}")]
        if run.stale(run.sampling):
            stale = "The samples at the end are of other weights than the model has now: run"
            yield Hint(stale, run.folder.command("sample"))
    else:
        last = [(path, f"after epoch {epoch}") for epoch, path in shown[-1:]]
    before = [(path, f"after epoch {epoch}") for epoch, path in shown if path not in dict(last)]
    yield from _galleries(run, last)
    yield from _galleries(run, before, small=True)
    if len(shown) < len(snapshots):
        yield Text(f"{len(shown)} of {quantity(len(snapshots), 'snapshot')} are shown.")
    if not by_command.exists() and not shown:
        yield _table(run) or Hint("No samples yet: run", run.folder.command("sample"))


def reconstructions(run: Contents) -> list[Block]:
    """Show data, and what comes back from its latent."""
    factor = finite(run.reconstruction.get("difference_factor"))
    return _picture(
        run,
        "reconstructions",
        "reconstruct",
        run.reconstruction,
        alt="Examples of the data in the first row, below them what came back from their latents",
        caption="The first row is data, below it the reconstructions: data, latent, data.",
        note=f" The last row is their difference, times {number(factor, 2)}." if factor else "",
    )


def interpolation(run: Contents) -> list[Block]:
    """Show paths between examples, through the latent space."""
    return _picture(
        run,
        "interpolation",
        "interpolate",
        run.interpolation,
        alt="Paths between examples through the latent space, one in a row",
        caption="Each row is a path between two examples through the latent space.",
    )


def _galleries(run: Contents, entries: Sequence[tuple[Path, str]], *, small: bool = False) -> list[Block]:
    """Show pictures of samples side by side, and which of them are damaged."""
    what = "Points" if run.shape == (2,) else "Samples"
    pictures: list[Picture] = []
    damaged: list[Block] = []
    for path, when in entries:
        try:
            picture = read_picture(path, f"{what} drawn from the model {when}", when[0].upper() + when[1:])
        except DamagedPictureError as error:
            damaged.append(Hint(f"{error}."))
        else:
            pictures += [picture] if picture else []
    return [Gallery(pictures, small), *damaged] if pictures else damaged


def _picture(
    run: Contents, name: str, command: str, results: dict[str, Any], *, alt: str, caption: str, note: str = ""
) -> list[Block]:
    """Show the picture of a command, with a note that its results add to the caption, else that of a snapshot."""
    missing = Hint(f"No {name} yet: run", run.folder.command(command))
    stale = " It is of other weights than the model has now." if run.stale(results) else ""
    entries = [(run.folder.samples / f"{name}.png", f"{caption}{note}{stale}")]
    entries += [(path, f"{caption} After epoch {n}.") for n, path in _snapshots(run, name, ".png")[-1:]]
    for path, text in entries:
        try:
            picture = read_picture(path, alt, text)
        except DamagedPictureError as error:
            return [Hint(f"{error}: run", run.folder.command(command))]
        if picture:
            return [Gallery([picture])] if path is entries[0][0] else [Gallery([picture]), missing]
    return [missing]


def _snapshots(run: Contents, name: str, suffix: str) -> list[tuple[int, Path]]:
    """List the files that snapshots wrote, by epoch."""
    pattern = re.compile(rf"{name}-epoch-(\d{{1,9}}){re.escape(suffix)}")
    try:
        paths = list(run.folder.samples.iterdir())
    except OSError:
        return []
    return sorted((int(match[1]), path) for path in paths if (match := pattern.fullmatch(path.name)))


def _table(run: Contents) -> Fold | None:
    """Show the first samples of a table, which has no picture."""
    snapshots = [path for _, path in reversed(_snapshots(run, "samples", ".csv"))]
    for path in (run.folder.samples / "samples.csv", *snapshots):
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row[:_MAX_COLUMNS] for row in islice(csv.reader(file), _MAX_ROWS + run.has_header)]
        except (OSError, UnicodeError, csv.Error):
            continue
        names = rows.pop(0) if run.has_header and rows else []
        cells = [[Cell(str(i + 1)), *(Cell(text, "number") for text in row)] for i, row in enumerate(rows) if row]
        if cells:
            headings = ["sample", *(names or (f"feature {j + 1}" for j in range(len(rows[0]))))]
            title = f"The first samples of {path.name}"
            return Fold(title, [Table(title, headings, cells)])
    return None

"""Pictures that a run drew: samples over time, reconstructions, interpolations."""

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

from iresnet.report.elements import Block, Cell, Fold, Gallery, Hint, Panel, Picture, Section, Table, Text
from iresnet.report.reading import RunFiles, evenly
from iresnet.report.words import finite, number, quantity

# -- pictures ----------------------------------------------------------------------------------------------------------


_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_LARGEST = 8_000_000
"""Bytes of a picture, at most: a page must open in a moment."""


class DamagedPictureError(ValueError):
    """A file that is no sound PNG, or too large."""


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
    if len(content) > _LARGEST:
        raise DamagedPictureError(f"{path.name} is too large for a page ({len(content) // 1_000_000} MB)")
    width, height = _size(content, path.name)
    uri = "data:image/png;base64," + base64.b64encode(content).decode()
    return Picture(uri, alt, caption, width, height, pixels)


def _size(content: bytes, name: str) -> tuple[int, int]:
    """Width and height of a PNG, after checking that all of it is there."""
    place, kinds = len(_SIGNATURE), []
    while content.startswith(_SIGNATURE) and place + 12 <= len(content):
        (length,) = struct.unpack_from(">I", content, place)
        chunk = content[place + 4 : place + 8 + length]
        if zlib.crc32(chunk).to_bytes(4, "big") != content[place + 8 + length : place + 12 + length]:
            break
        kinds.append(chunk[:4])
        place += 12 + length
    if kinds[:1] != [b"IHDR"] or kinds[-1] != b"IEND":
        raise DamagedPictureError(f"{name} is damaged: it is not a whole PNG file")
    width, height = struct.unpack_from(">II", content, 16)
    return width, height


# -- samples -----------------------------------------------------------------------------------------------------------


_MOST_PICTURES = 6
_MOST_ROWS, _MOST_COLUMNS = 5, 8


def samples(runs: Sequence[RunFiles]) -> Section:
    """The last samples in full, and those of the snapshots before."""
    return Section("samples", "Samples over time", [Panel(i, _samples(run)) for i, run in enumerate(runs)])


def reconstructions(runs: Sequence[RunFiles]) -> Section:
    """Data, and what comes back from its latent."""
    alt = "Examples of the data in the first row, below them what came back from their latents"
    caption = "The first row is data, below it the reconstructions: data, latent, data."
    panels = []
    for i, run in enumerate(runs):
        factor = finite(run.reconstruction.get("difference_factor"))
        difference = f" The last row is their difference, times {number(factor, 2)}." if factor else ""
        blocks = _one(run, "reconstructions", "reconstruct", alt, (caption, difference), run.reconstruction)
        panels.append(Panel(i, blocks))
    return Section("reconstructions", "Reconstructions", panels)


def interpolation(runs: Sequence[RunFiles]) -> Section:
    """Paths between examples, through the latent space."""
    alt = "Paths between examples through the latent space, one in a row"
    caption = "Each row is a path between two examples through the latent space."
    panels = [
        Panel(i, _one(run, "interpolation", "interpolate", alt, (caption, ""), run.interpolation))
        for i, run in enumerate(runs)
    ]
    return Section("interpolation", "Interpolation", panels)


def _samples(run: RunFiles) -> list[Block]:
    if run.kind == "classify":
        return [Text("A classifier has no density to draw samples from.")]
    over_time = _numbered(run.samples, "samples-epoch-", ".png")
    shown = evenly(over_time, _MOST_PICTURES)
    by_command = run.samples / "samples.png"
    last = [(by_command, f"at the end, by iresnet sample{_temperature(run)}")] if by_command.exists() else []
    if not last and shown:
        last = [(path, f"after epoch {epoch}") for epoch, path in shown[-1:]]
    before = [(path, f"after epoch {epoch}") for epoch, path in shown if path not in dict(last)]
    blocks: list[Block] = []
    if by_command.exists() and run.stale(run.drawn):
        blocks.append(
            Hint("The samples at the end are of other weights than the model has now: run", run.command("sample"))
        )
    for entries, small in ((last, False), (before, True)):
        pictures, damaged = _pictures(run, entries)
        blocks += [Gallery(pictures, small)] if pictures else []
        blocks += [Hint(text) for text in damaged]
    if len(shown) < len(over_time):
        blocks.append(Text(f"{len(shown)} of {quantity(len(over_time), 'snapshot')} are shown."))
    return blocks or _rows(run) or [Hint("No samples yet: run", run.command("sample"))]


def _temperature(run: RunFiles) -> str:
    """At what temperature the command drew, where that was noted."""
    found = finite(run.drawn.get("temperature"))
    return "" if found is None else f", at temperature {found:g}"


def _pictures(run: RunFiles, entries: Sequence[tuple[Path, str]]) -> tuple[list[Picture], list[str]]:
    what = "Points" if run.shape == (2,) else "Samples"
    pictures, damaged = [], []
    for path, when in entries:
        try:
            picture = read_picture(path, f"{what} drawn from the model {when}", when[0].upper() + when[1:])
        except DamagedPictureError as error:
            damaged.append(f"{error}.")
        else:
            pictures += [picture] if picture else []
    return pictures, damaged


def _one(
    run: RunFiles, name: str, command: str, alt: str, captions: tuple[str, str], result: dict[str, Any]
) -> list[Block]:
    """A picture that a command draws, with what its result adds to the caption, else those of the snapshots."""
    missing = Hint(f"No {name} yet: run", run.command(command))
    caption, more = captions
    stale = " It is of other weights than the model has now." if run.stale(result) else ""
    entries = [(run.samples / f"{name}.png", f"{caption}{more}{stale}")]
    entries += [
        (path, f"{caption} After epoch {n}.") for n, path in _numbered(run.samples, f"{name}-epoch-", ".png")[-1:]
    ]
    for path, words in entries:
        try:
            picture = read_picture(path, alt, words)
        except DamagedPictureError as error:
            return [Hint(f"{error}: run", run.command(command))]
        if picture:
            return [Gallery([picture])] if path is entries[0][0] else [Gallery([picture]), missing]
    return [missing]


def _numbered(folder: Path, prefix: str, suffix: str) -> list[tuple[int, Path]]:
    """Files of snapshots, by epoch."""
    matches = ((re.fullmatch(rf"{prefix}(\d{{1,9}}){re.escape(suffix)}", path.name), path) for path in _files(folder))
    return sorted((int(match[1]), path) for match, path in matches if match)


def _files(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.iterdir()
    except OSError:
        return


def _rows(run: RunFiles) -> list[Block]:
    """The first samples of a table, which is not drawn."""
    files = [
        run.samples / "samples.csv",
        *(path for _, path in reversed(_numbered(run.samples, "samples-epoch-", ".csv"))),
    ]
    for path in files:
        try:
            with path.open(encoding="utf-8", newline="") as file:
                rows = [row[:_MOST_COLUMNS] for row in islice(csv.reader(file), _MOST_ROWS + run.named)]
        except (OSError, UnicodeError, csv.Error):
            continue
        names = rows.pop(0) if run.named and rows else []
        cells = [[Cell(str(i + 1)), *(Cell(text, "number") for text in row)] for i, row in enumerate(rows) if row]
        if cells:
            headings = ["sample", *(names or (f"feature {j + 1}" for j in range(len(rows[0]))))]
            title = f"The first samples of {path.name}"
            return [Fold(title, [Table(title, headings, cells)])]
    return []

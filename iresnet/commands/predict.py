"""``iresnet predict``: the class of each image or row of a file, and how far it is certified."""

__all__ = ["predict"]

from pathlib import Path
from typing import TYPE_CHECKING

from iresnet.bars import progress
from iresnet.commands.arguments import (
    AnyRun,
    BatchSize,
    DeviceName,
    ExampleFiles,
    Gpus,
    Keep,
    Processes,
    Seed,
    classifier_of,
    load_run,
    open_files,
    use_processes,
)
from iresnet.commands.rows import Rows

if TYPE_CHECKING:
    from typing import Any

    from iresnet.evaluation import Predictions

BATCH_SIZE = 256


def predict(
    run: AnyRun,
    files: ExampleFiles,
    *,
    out: Path | None = None,
    keep: Keep = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Predict the class of each image of a folder, or of each row of a table.

    For each: predicted, the most probable class; probability, its own; certified_radius, the Euclidean distance, in
    units of the data (levels of images, those of the columns of a table), within which the prediction is proved not to
    change: (f1 - f2) / (sqrt(2) L), the margin of the two largest logits over the Lipschitz constant of the whole
    network, as iresnet certify bounds its blocks. It is 0 where nothing is proved, as for plain networks. A file also
    has p_CLASS, the probability of each class.

    Files are read, predicted and written batch by batch. Images are refused unless they have the size and channels of
    the training data; columns of a table are found by name.

    Args:
        run: Run folder.
        files: Images, table or array.
        out: File to write, .csv or .parquet, a row each; without it the first 20 are printed.
        seed: Of the noise that hybrids add to integers.
    """
    use_processes(processes, gpus, device)
    from iresnet import evaluation

    rows = Rows(out)
    folder, model, inputs = load_run(run, device, anywhere=True)
    classifier = classifier_of(model)
    batches, total = open_files(folder, files, batch_size=batch_size or BATCH_SIZE, keep=keep)
    with progress("predictions", total) as advance, rows.written():
        for examples, found in evaluation.predict(classifier, batches, inputs, seed=seed):
            rows.add(examples, _columns(found, inputs.class_names, everything=out is not None), advance)
    rows.finish()


def _columns(found: "Predictions", names: tuple[str, ...], *, everything: bool) -> "dict[str, list[Any]]":
    """Return the results of a batch, by column."""
    probability, predicted = found.probabilities.max(1)
    columns = {
        "predicted": [names[label] for label in predicted.tolist()],
        "probability": probability.tolist(),
        "certified_radius": found.radius.tolist(),
    }
    every = {f"p_{name}": p.tolist() for name, p in zip(names, found.probabilities.T, strict=True)}
    return columns | every if everything else columns

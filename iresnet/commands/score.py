"""``iresnet score``: the likelihood of each image or row of a file, and how unusual it is for the training data."""

__all__ = ["score", "training_examples", "training_reference"]

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter, validators

from iresnet.bars import progress
from iresnet.commands.arguments import (
    AnyRun,
    BatchSize,
    DataDir,
    DeviceName,
    ExampleFiles,
    Gpus,
    Keep,
    Processes,
    Seed,
    flow_of,
    load_data,
    load_run,
    open_files,
    use_processes,
)
from iresnet.commands.contexts import Context, at_context, has_contexts
from iresnet.commands.rows import Rows
from iresnet.console import err, is_main, say
from iresnet.errors import DataError, RecipeError, WriteError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from iresnet.data import Dataset, Examples, Split
    from iresnet.evaluation import Reference
    from iresnet.flows import Flow
    from iresnet.inputs import Inputs
    from iresnet.runs import Run

REFERENCE = "training-scores.json"
"""File of a run folder with the log-likelihoods of training examples."""

N_REFERENCE = 2000
"""Training examples that are scored unless another number is asked for."""

BATCH_SIZE = 128


def score(
    run: AnyRun,
    files: ExampleFiles,
    *,
    out: Path | None = None,
    keep: Keep = None,
    false_alarms: Annotated[float, Parameter(validator=validators.Number(gt=0, lt=1))] = 0.01,
    train_examples: Annotated[int | None, Parameter(validator=validators.Number(gte=0))] = None,
    context: Context = None,
    draws: Annotated[int, Parameter(validator=validators.Number(gte=1))] = 4,
    data_dir: DataDir = None,
    seed: Seed = 0,
    batch_size: BatchSize = None,
    device: DeviceName = "auto",
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Score each image of a folder, or each row of a table: its log-likelihood, and how unusual that is.

    For each: log_likelihood in nats (of integers, a lower bound), bits_per_dim of images, standard_error over draws of
    noise and probes; p_likelihood, the share of training examples at most as likely; p_typicality, the share at least
    as far from their mean, to either side; flagged, where p_typicality is at most --false-alarms: too unlikely, or
    likelier than data are. The example itself counts in both shares, so they are never 0.

    A score is a function of the example alone: the same in any batch, order and number of processes. It is read, scored
    and written batch by batch. The training examples are scored at the first call, and kept in training-scores.json of
    the run. They are examples that the model has seen, so new ones from the same source are flagged somewhat more often
    than --false-alarms tells.

    Conditional densities are given --context, or the columns of the table that have the context; p-values compare with
    training examples at their own contexts.

    Args:
        run: Run folder.
        files: Images, table or array.
        out: File to write, .csv or .parquet, a row each; without it the 20 most unusual are printed.
        false_alarms: Share of the training examples that would be flagged.
        train_examples: Training examples to compare with, drawn at random; 0 for none, and no p-values. By default
            those that are kept in the run, else 2000.
        draws: Draws of noise and probes for each example.
        data_dir: Folder of data sets, for the training examples.
        seed: Of noise and probes.
    """
    use_processes(processes, gpus, device)
    from iresnet import evaluation

    by = "log_likelihood" if train_examples == 0 else "p_typicality"
    rows = Rows(out, by=by)
    folder, model, inputs = load_run(run, device, anywhere=True)
    flow, size = flow_of(model), batch_size or BATCH_SIZE
    batches, total = open_files(folder, files, batch_size=size, keep=keep, contexts=not context)
    of_files = flow if has_contexts(inputs, files, context) else flow_of(at_context(flow, inputs, context)[0])
    settings = {"n_draws": draws, "seed": seed}
    reference = None
    if train_examples != 0:
        reference = training_reference(folder, flow, inputs, data_dir, train_examples, settings)
        _check_rate(false_alarms, len(reference))

    n_flagged = 0
    with progress("scores", total) as advance, rows.written():
        for examples, scores in evaluation.score(of_files, batches, inputs, **settings):
            found = _columns(scores.log_prob, inputs, reference, false_alarms, scores.standard_error)
            n_flagged += sum(found.get("flagged", []))
            rows.add(examples, found, advance)

    rows.finish()
    if reference:
        say(
            f"flagged {n_flagged} of {rows.n} at --false-alarms {false_alarms:g}, by typicality among "
            f"{len(reference)} training examples (mean log-likelihood {reference.mean:.4g} nats)"
        )


def _columns(
    log_prob: "torch.Tensor",
    inputs: "Inputs",
    reference: "Reference | None",
    false_alarms: float,
    standard_error: "torch.Tensor",
) -> dict[str, list[Any]]:
    """Return the results of a batch, by column."""
    columns: dict[str, list[Any]] = {"log_likelihood": log_prob.tolist()}
    if len(inputs.shape) == 3:
        columns["bits_per_dim"] = (-log_prob / (math.prod(inputs.shape) * math.log(2))).tolist()
    columns["standard_error"] = standard_error.tolist()
    if reference:
        typicality = reference.p_typicality(log_prob)
        columns["p_likelihood"] = reference.p_likelihood(log_prob).tolist()
        columns["p_typicality"] = typicality.tolist()
        columns["flagged"] = (typicality <= false_alarms).tolist()
    return columns


# -- training examples -------------------------------------------------------------------------------------------------


def _check_rate(false_alarms: float, n: int) -> None:
    if false_alarms * (n + 1) < 1:
        raise RecipeError(
            f"--false-alarms {false_alarms:g} takes at least {math.ceil(1 / false_alarms) - 1} training examples, got "
            f"{n}; raise --train-examples"
        )


def training_reference(
    folder: "Run",
    flow: "Flow",
    inputs: "Inputs",
    data_dir: Path | None,
    n: int | None,
    settings: dict[str, int],
) -> "Reference":
    """Return the scores of training examples that are kept in the run, or compute and keep them."""
    import torch

    from iresnet import evaluation

    about = {"model_sha256": folder.weights_sha256(), **settings}
    if kept := _kept(folder, about, n):
        return evaluation.Reference(torch.tensor(kept, dtype=torch.float64))
    training = training_examples(folder, load_data(folder, data_dir), inputs, n or N_REFERENCE)
    with progress("training examples", len(training)) as advance:
        found, done = [], 0
        for examples, scores in evaluation.score(flow, _batches(training, inputs), inputs, **settings):
            found.append(scores.log_prob)
            advance(done := done + len(examples))
    log_probs = torch.cat(found)
    say(f"scored {len(training)} training examples to compare with")
    if is_main():
        values = [round(value, 6) for value in log_probs.tolist()]
        try:
            folder.write_json(REFERENCE, {**about, "asked": n or N_REFERENCE, "log_likelihood": values})
        except WriteError as error:
            err.print(f"iresnet: {error}; they are scored again at the next call")
    return evaluation.Reference(log_probs)


def _kept(folder: "Run", about: dict[str, Any], n: int | None) -> list[float]:
    """Return the log-likelihoods in the run, where they are of these weights and settings, and of so many examples."""
    stored = folder.read_json(REFERENCE)
    values = stored.get("log_likelihood")
    fits = all(stored.get(key) == value for key, value in about.items()) and n in (None, stored.get("asked"))
    if not fits or not isinstance(values, list):
        return []
    return values if all(isinstance(value, (int, float)) for value in values) else []


def _batches(training: "Split", inputs: "Inputs") -> "Iterator[Examples]":
    from iresnet.data import Examples

    for some in training.split(BATCH_SIZE):
        yield Examples(some.x, [None] * len(some), context=some.y if inputs.is_conditional else None)


def training_examples(folder: "Run", dataset: "Dataset", inputs: "Inputs", n: int) -> "Split":
    """Return training examples as they were recorded, of a table without the noise that is added to it."""
    from iresnet.data import Split, load
    from iresnet.data.columns import offsets

    if not inputs.columns:
        return dataset.train.shuffled(0, n)
    if any(column.noisy for column in inputs.columns):
        config, _ = folder.read_config()
        dataset = load(dataset.source, **replace(config.data, dequantize=False).options)
    some = dataset.train.shuffled(0, n)
    if some.x.shape[1:] != inputs.shape:
        raise DataError(f"{dataset.source} has other columns than when the run was trained")
    return Split(some.x.double() + offsets(dataset.columns, *inputs.shape), some.y)

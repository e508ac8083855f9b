"""``iresnet reconstruct``: data -> latent -> data, and how far that is from the data."""

__all__ = ["reconstruct"]

from iresnet.commands.arguments import Count, DataDir, Gpus, Processes, RunFolder, Seed, open_run, spread
from iresnet.console import is_main, progress, say


def reconstruct(
    run: RunFolder,
    *,
    n: Count = 10,
    split: str = "test",
    data_dir: DataDir = None,
    seed: Seed = 0,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Invert a whole split and report the largest error; draws data above their reconstructions.

    Args:
        run: Run folder.
        n: How many to draw in samples/reconstructions.*.
        split: train, validation or test.
        data_dir: Folder of data sets.
        seed: Of the dequantisation noise.
    """
    spread(processes, gpus)
    import torch

    from iresnet import evaluation
    from iresnet.data import dequantise
    from iresnet.pictures import draw

    folder, model, dataset, part = open_run(run, data_dir, split)
    _, inputs = folder.read_config()
    bijection = model.bijection
    with progress("inversion", len(part)) as advance:
        result = evaluation.reconstruction(bijection, part, levels=dataset.levels, seed=seed, progress=advance)
    if not is_main():
        return
    x = dequantise(part.x[:n], levels=dataset.levels, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        back = bijection.inverse(bijection(x))
    path = draw(torch.cat([x, back]), inputs, folder.samples / "reconstructions", columns=len(x))
    say(f"{split} {result}")
    say(f"wrote {path} (above: data, below: data -> latent -> data)")

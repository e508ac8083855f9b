"""``iresnet sample``: draw from a density."""

__all__ = ["sample"]

from iresnet.commands.arguments import Count, Gpus, Processes, RunFolder, Seed, flow_of, load_run, spread
from iresnet.console import is_main, say


def sample(
    run: RunFolder,
    *,
    n: Count = 64,
    temperature: float = 1.0,
    seed: Seed = 0,
    processes: Processes = None,
    gpus: Gpus = None,
) -> None:
    """Draw samples: a grid of images, a scatter plot of points, or a table; writes samples/samples.*.

    Args:
        run: Run folder.
        n: How many.
        temperature: Multiplies the latent's standard deviation; below 1 gives more typical samples.
        seed: Of the latents.
    """
    spread(processes, gpus)
    import torch

    from iresnet import evaluation
    from iresnet.pictures import draw

    folder, model, inputs = load_run(run)
    generator = torch.Generator().manual_seed(seed)
    samples = evaluation.sample(flow_of(model), n, temperature=temperature, generator=generator)
    if is_main():
        say(f"wrote {draw(samples, inputs, folder.samples / 'samples')}")

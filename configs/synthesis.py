"""The ablation of synthesized pairs (python -m evals.synthesis): the quickstart's model, trained
briefly on one directory of pairs. Both sides of the comparison differ in `data.pairs` alone."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(form: str = "") -> ConfigDict:
    config = quickstart.get_config(form)
    config.data.pairs = "{workdir}/../pairs"  # evals.synthesis says which
    config.data.siblings = ConfigDict()
    config.data.workers = 0
    config.pyramid.stages = 2
    config.export = ("gve_jax",)
    if form != "smoke":
        config.steps = 150
        config.optimizer.warmup_steps = 15
        config.optimizer.learning_rate = 1e-3
        config.pyramid.pairs = 16
        config.checkpoint.every = 60
        # Few shapes: each pair of them is compiled, and that is most of so short a run.
        config.buckets.shapes = ((0, 192), (1, 80), (4, 80))
    return config

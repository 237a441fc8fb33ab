"""The ablation of synthesized pairs (python -m evals.synthesis): the quickstart's model, smaller
and trained briefly. Both sides of the comparison differ in `data.pairs` alone."""

from ml_collections import ConfigDict

from configs import quickstart


def get_config(form: str = "") -> ConfigDict:
    config = quickstart.get_config(form)
    config.data.pairs = "{workdir}/../pairs"  # evals.synthesis says which
    config.data.siblings = ConfigDict()  # the collected sources have none
    config.data.workers = 0
    config.pyramid.stages = 1
    config.pyramid.pairs = 16
    # By size, nearly: at the first sigma of the paper, an untrained model draws images most of all.
    config.pyramid.sigma_first = config.pyramid.sigma_last = 1.0
    if form != "smoke":
        config.steps = 150
        config.optimizer.warmup_steps = 15
        config.optimizer.learning_rate = 1e-3
        config.model.vision.update(hidden_size=96, intermediate_size=192, out_hidden_size=96)
        config.model.text.update(hidden_size=96, intermediate_size=288, num_hidden_layers=2)
        config.model.text.mrope_section = (2, 5, 5)
        config.checkpoint.every = 50
        # Few shapes: each pair of them is compiled, and that is most of so short a run.
        config.buckets.shapes = ((0, 160), (1, 80), (4, 80))
    return config

"""What the papers leave open in v2 (arXiv 2507.03285): does it matter which way we chose? Each other way, trained.

    python -m studies.choices            trains what is not there yet in runs/, then writes results/choices.json
    python -m studies.choices --page     and puts the table into docs/equations.md

The model is v2 of the study `v2-parts`, its steps and the learning rate that was best there. Every other way is a small
change of the built model, made here: the package has one way only.
"""

import argparse
import json
import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import fmean, stdev
from types import MethodType
from unittest import mock

import torch
from torch import Tensor, nn

from mosaic_cli.commands import markdown
from mosaic_cli.core import ops
from mosaic_cli.core.features import GatedKeyExtractor
from mosaic_cli.core.gated import next_average, true_average
from mosaic_cli.core.memory import ADAPTIVE, PairMemory
from mosaic_cli.core.model import build_model
from mosaic_cli.core.mosaic import Mosaic
from mosaic_cli.data.prepare import prepare
from mosaic_cli.data.shards import open_split
from mosaic_cli.device import Placement, choose_placement, machine_words
from mosaic_cli.evaluation.language import evaluate_language
from mosaic_cli.evaluation.length import LengthResult, evaluate_length, longest_window
from mosaic_cli.intervals import estimate_few
from mosaic_cli.recipe import Recipe, load_recipe
from mosaic_cli.runs.directory import locate_run
from mosaic_cli.training import setup

HERE = Path(__file__).parent
RESULTS, PAGE = HERE / "results" / "choices.json", HERE.parent / "docs" / "equations.md"
COMMAND = "python -m studies.choices --page"
SEEDS = (1, 2)
TIMES = 8  # training lengths up to which the loss far out is taken
SETTINGS = [
    "model.preset=v2",
    "model.num_layers=2",
    "model.feedforward_dim=250",
    "model.short_window=32",
    "model.long_delay=8",
    "model.max_long_delay=32",
    "model.init=null",
    "train.eval_interval=350",
    "train.save_interval=350",
    "train.keep_checkpoints=1",
    "train.sample_prompt=null",
]


def as_chosen(model: Mosaic) -> None:
    """What the package does."""


def delay_per_layer(model: Mosaic) -> None:
    """m is drawn for each layer."""
    config = model.config

    def begin_step(self: Mosaic, seed: int, step: int) -> None:
        for layer, block in enumerate(self.blocks):
            chosen = random.Random(f"{seed}:{step}:{layer}").randint(config.long_delay, config.max_long_delay)
            block.contextual.long.training_delay = chosen

    model.begin_step = MethodType(begin_step, model)


def delay_per_sequence(model: Mosaic) -> None:
    """m is drawn for each sequence of the batch, the same in all layers."""
    config = model.config
    draws = random.Random()

    def begin_step(self: Mosaic, seed: int, step: int) -> None:
        draws.seed(f"{seed}:{step}")

    def recall(self: PairMemory, x: Tensor, cache: object = None) -> Tensor:
        if not self.training:
            return PairMemory.recall(self, x, cache)
        state, reads = draws.getstate(), []
        for sequence in x.split(1):
            self.training_delay = draws.randint(config.long_delay, config.max_long_delay)
            reads.append(PairMemory.recall(self, sequence))
        draws.setstate(state)  # the next layer draws the same
        return torch.cat(reads)

    model.begin_step = MethodType(begin_step, model)
    for block in model.blocks:
        block.contextual.long.recall = MethodType(recall, block.contextual.long)


def one_older(model: Mosaic) -> None:
    """A long-term memory reads pairs older than m, not those of age m."""
    begin_step = model.begin_step
    long = [block.contextual.long for block in model.blocks]
    for memory in long:
        memory.delay += 1

    def begin_one_older(self: Mosaic, seed: int, step: int) -> None:
        begin_step(seed, step)
        for memory in long:
            memory.training_delay += 1

    model.begin_step = MethodType(begin_one_older, model)


def shared_bandwidths(model: Mosaic) -> None:
    """The two memories of a block have one set of bandwidths."""
    for block in model.blocks:
        short, long = block.contextual.short.read, block.contextual.long.read
        for name in ADAPTIVE:
            delattr(long, name)
        long.bandwidths = short.bandwidths


def pairs_of_the_text(model: Mosaic) -> None:
    """n counts all pairs of the text so far, whichever of them a memory reads."""

    def count_all(memory: PairMemory) -> None:
        def beta(num_queries: int, num_pairs: int, *scalars: Tensor) -> Tensor:
            newest = num_pairs + (memory.training_delay if memory.training else memory.delay) - 1
            seen = torch.arange(newest - num_queries + 1, newest + 1, device=scalars[0].device)
            return ops.adaptive_bandwidth(*scalars, seen)

        memory.read.beta = beta

    for block in model.blocks:
        for memory in block.contextual.memories():
            count_all(memory)


class FeatureGatedKeys(GatedKeyExtractor):
    """Keys whose gate and decay are numbers of each feature instead of each head."""

    def __init__(self, other: GatedKeyExtractor):
        nn.Module.__init__(self)
        width = other.project.in_features
        self.project, self.num_heads, self.normalised = other.project, other.num_heads, other.normalised
        std = other.gate.weight.std().item()
        self.gate, self.decay = (nn.Linear(width, width, bias=False) for _ in range(2))
        for layer in (self.gate, self.decay):
            nn.init.trunc_normal_(layer.weight, std=std, a=-3 * std, b=3 * std)

    def forward(self, x: Tensor, state: None = None) -> Tensor:
        """Keys (B, H, T, D) for x (B, T, C). Reads whole windows only: nothing is decoded here."""
        assert state is None
        projected, log_gate, rate = self.project(x), self.gate(x), self.decay(x).abs()
        states = [(projected[:, 0], log_gate[:, 0])]  # average and scale, (B, C)
        for t in range(1, x.shape[1]):
            states.append(next_average(projected[:, t], log_gate[:, t], rate[:, t], states[-1]))
        average, scale = (ops.split_heads(torch.stack(part, 1), self.num_heads) for part in zip(*states, strict=True))
        return ops.normalise(true_average(average, scale - scale.amax(-1, keepdim=True)))  # (B, H, T, D)


def gates_per_feature(model: Mosaic) -> None:
    """Gate and decay of keys are per feature; W_g and W_l are C x C."""
    for block in model.blocks:
        for memory in block.contextual.memories():
            memory.keys = FeatureGatedKeys(memory.keys)


def alpha_stays(model: Mosaic) -> None:
    """At its start, th = 0, the slope of th's absolute value is 0, as autograd has it: alpha stays 1."""
    for block in model.blocks:
        for memory in block.contextual.memories():
            memory.values.form = lambda theta: torch.exp(theta.abs().clamp(max=15))


def small_embedding(model: Mosaic) -> None:
    """The embedding starts with std 0.02."""
    with torch.no_grad():
        model.embedding.weight.mul_(0.02 * math.sqrt(model.config.d_model))


def small_logits(model: Mosaic) -> None:
    """Logits are divided by sqrt(C), as v1 does."""
    model.logit_scale = 1 / math.sqrt(model.config.d_model)


CHOICES: dict[str, Callable[[Mosaic], None]] = {
    "as chosen": as_chosen,
    "m per layer": delay_per_layer,
    "m per sequence": delay_per_sequence,
    "older than m": one_older,
    "n of the whole text": pairs_of_the_text,
    "bandwidths shared": shared_bandwidths,
    "gates per feature": gates_per_feature,
    "alpha stays 1": alpha_stays,
    "embedding from 0.02": small_embedding,
    "logits over sqrt(C)": small_logits,
}


@contextmanager
def built_with(change: Callable[[Mosaic], None]) -> Iterator[None]:
    """Models that training builds in this context are changed before their first step."""

    def build(config):
        model = build_model(config)
        change(model)
        return model

    with mock.patch.object(setup, "build_model", build):
        yield


def train(name: str, recipe: Recipe, placement: Placement) -> dict[str, float]:
    """Train one of CHOICES, whose figures are then kept with its run, and read from there the next time."""
    run = locate_run(f"choices-{name.replace(' ', '-').replace('(', '').replace(')', '')}-seed{recipe.train.seed}")
    kept = run.path / "choice.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    with built_with(CHOICES[name]):
        taken_up = run.exists()
        trainer = setup.take_up(run, None, placement) if taken_up else setup.begin(recipe, run.name, placement)
    for _ in trainer.steps():
        pass
    tokens = open_split(recipe.data_dir, "val")
    window = min(longest_window(trainer.model, len(tokens)), TIMES * recipe.model.context_length)
    *_, inside = evaluate_language(trainer.model, tokens, placement)
    *_, far = evaluate_length(trainer.model, tokens, window, placement)
    assert isinstance(far, LengthResult)
    figures = {"loss": inside.loss, "ratio": far.ratio(TIMES), "parameters": run.info()["parameters"]}
    kept.write_text(json.dumps(figures), encoding="utf-8")
    return figures


def table(results: dict) -> str:
    """Each way's figures, and how much more than ours it loses, seed by seed: means and Student's 95 % intervals."""
    head = ["chosen otherwise", "validation loss", "more than as chosen", "loss far out", "more than as chosen"]
    lines, rows = [], results["rows"]
    ours = rows["as chosen"]
    for name, seeds in rows.items():
        cells = [f"{name}: {CHOICES[name].__doc__}"]
        for figure in ("loss", "ratio"):
            own = [one[figure] for one in seeds]
            cells.append(f"{fmean(own):.3f}")
            lead = estimate_few([one - other[figure] for one, other in zip(own, ours, strict=True)])
            cells.append("" if name == "as chosen" else f"{lead.mean:+.3f} +- {lead.high - lead.mean:.3f}")
        lines.append(cells)
    spread = ", ".join(f"{stdev(one[figure] for one in ours):.3f}" for figure in ("loss", "ratio"))
    return markdown.table(head, lines) + (
        f"\n\nSeeds: {', '.join(map(str, results['seeds']))}, all other settings as in `v2-parts`, learning rate "
        f"{results['learning_rate']:g}. Loss far out: that of positions from {TIMES // 2} to {TIMES} training lengths, "
        f"over that of the same tokens inside. Standard deviation over seeds, as chosen: {spread}. "
        f"{results['machine']}; torch {results['torch']}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page", action="store_true", help="put the table into docs/equations.md")
    into_page = parser.parse_args().page
    recipes = [load_recipe("quickstart", overrides=[*SETTINGS, f"train.seed={seed}"]).recipe for seed in SEEDS]
    if not recipes[0].data_dir.exists():
        for _ in prepare(recipes[0].data, recipes[0].data_dir):
            pass
    placement = choose_placement()
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in CHOICES}
    for recipe in recipes:
        for name in CHOICES:
            rows[name].append(train(name, recipe, placement))
            print(f"seed {recipe.train.seed}, {name}: {rows[name][-1]}", flush=True)
    results = {
        "seeds": SEEDS,
        "learning_rate": recipes[0].train.learning_rate,
        "machine": machine_words(placement.device),
        "torch": torch.__version__,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    text = table(results)
    print(text)
    if into_page:
        markdown.write_between(PAGE, COMMAND, text)


if __name__ == "__main__":
    main()

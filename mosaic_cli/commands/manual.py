"""Writes docs/cli.md from the commands, docs/recipes.md and docs/studies.md from the schemas, and the tables of studies
into docs/results.md, so that none can drift.

A program of its own: `python -m mosaic_cli.commands.manual`. With `--check` it compares, and exits 3 on a stale page.
"""

import inspect
import signal
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.markdown import code, header_comment, table
from mosaic_cli.commands.study_pages import fill_blocks, studies_page
from mosaic_cli.errors import CheckFailed, MosaicError, UsageError
from mosaic_cli.recipe import BUILTIN_RECIPES, documented_keys, load_recipe
from mosaic_cli.studies.results import RESULTS

DOCS = Path(__file__).parent.parent.parent / "docs"
NOTE = "Written by `make docs`; a test compares it. Change the code, not this page."
VALUE_WORDS = {str: "TEXT", int: "N", float: "X", Path: "PATH"}

GENERAL = f"""
## What holds for every command

- The result goes to stdout. Progress, news, warnings and timings go to stderr.
- `--json` prints one object on stdout and nothing else there. It has the key `schema`. Keys may be added to an object, but none is renamed or removed.
- A command that fails with `--json` prints `{{"schema": "mosaic.error/1", "error": {{"message", "hint", "where"}}}}`: what is wrong, what to do next, and the file, key or option it is about. `hint` and `where` may be null.
- `--debug`, or `MOSAIC_DEBUG=1`, shows the traceback of an error. `NO_COLOR` turns colours off. `HF_HUB_OFFLINE=1` keeps `prepare` and `train` from asking the network; no other command asks it.
- `--ckpt` takes the name of a run (`first` is the folder `runs/first`), the path of a run's folder, or the path of a checkpoint's folder. After the name, `@best`, `@latest` or `@1000` chooses the checkpoint. Without it, it is the best one, or the latest one before the first validation.
- `--device auto` takes cuda, then mps, then cpu. `--dtype auto` takes bfloat16 where the device computes it natively, else float32; `generate` takes float32 on a CPU, the faster one there. What was chosen, and why, is said on stderr.

### Exit codes

| code | meaning |
|---|---|
| 0 | done |
| {MosaicError.exit_code} | failed while running; bad content is one case: an empty, binary or too short text, a damaged file |
| {UsageError.exit_code} | wrong usage or recipe: an option, a key, a value, a name or a path that does not exist |
| {CheckFailed.exit_code} | a check that was asked for did not hold |
| {128 + signal.SIGINT} / {128 + signal.SIGTERM} | interrupted by Ctrl-C / SIGTERM; `train` has saved a checkpoint, unless it was interrupted twice |
""".strip()  # noqa: E501  a paragraph of Markdown is one line, whatever the width

# Invocation -> schema, and its keys with their meaning. The tests compare both with what the commands write.
JSON_OBJECTS: dict[str, tuple[str, dict[str, str]]] = {
    "prepare": (
        "mosaic.prepare/1",
        {
            "data": "folder of the token shards",
            "manifest": "what it holds, as in manifest.json: [formats.md](formats.md#manifestjson)",
        },
    ),
    "prepare --verify": (
        "mosaic.prepare-verify/1",
        {
            "data": "the folder that was checked",
            "files": "number of files, all as the manifest says",
            "bytes": "their size",
        },
    ),
    "train": (
        "mosaic.train/1",
        {
            "run": "folder of the run",
            "steps": "optimizer steps since the run began",
            "tokens": "tokens trained on since the run began",
            "parameters": "parameters of the model, the tied head counted once",
            "train_loss": "loss of the last logged step's batch, nats per token",
            "val_loss": "last validation loss, nats per token; null before the first validation",
            "seconds": "wall time of training, validation and saving, all invocations together",
            "tokens_per_second": "`tokens` / `seconds`",
            "data_source": "what the data was made from, as used",
        },
    ),
    "train --dry-run": (
        "mosaic.train-dry-run/1",
        {
            "recipe": "rows of key, value and where the value came from",
            "parameters": "parameters of the model",
            "flops_per_step": "floating-point operations of an optimizer step",
            "tokens": "tokens of the whole run",
            "state_bytes": "memory for weights, gradients and AdamW's averages",
            "disk_bytes": "disk for the checkpoints that are kept",
            "seconds": "expected time of all steps, without validations; null where the machine has not the memory",
            "placement": "device and arithmetic, with the reason",
            "vocab_source": "where the vocabulary size comes from",
        },
    ),
    "train --profile": (
        "mosaic.train-profile/1",
        {
            "steps": "profiled steps",
            "on": "device and arithmetic, with the reason",
            "step_seconds": "mean wall time of a step while it was profiled; the parts add up to it",
            "plain_step_seconds": "median wall time of a step without the profiler",
            "parts[].part": "modules by name, the blocks' numbers left out, such as `contextual.keys.project`; each "
            "holds what the parts named after it do not. Around them `input`, `between the parts`, `head and loss`, "
            "`norm and clipping of gradients`, `optimizer`, and `other`: what no part holds",
            "parts[].forward_seconds": "time a step in the forward pass, or all of it for what has but one pass; on a "
            "GPU time of kernels. A loss in chunks computes its gradient here",
            "parts[].backward_seconds": "time a step in the backward pass",
            "parts[].share": "both, of `step_seconds`",
        },
    ),
    "eval": (
        "mosaic.eval/1",
        {
            "results[].ckpt": "as given after `--ckpt`",
            "results[].checkpoint": "folder of the checkpoint",
            "results[].kind": "`mosaic` or `transformer`",
            "results[].parameters": "parameters of the model",
            "results[].on": "as given after `--on`",
            "results[].data_source": "what the text is: the data's source as used, or the file",
            "results[].context": "tokens in a window",
            "results[].accuracy": "share of facts recalled right; this to `by_distance`: only with `--on recall`, "
            "`regbench`, `mqar` or `induction`, which have neither loss nor what belongs to it, and `interval` is the "
            "accuracy's. RegBench: share of positions whose likeliest token the automaton allows. `mqar`, `induction`: "
            "share of right answers to lists as long as in training",
            "results[].tvd": "mean total variation distance from the automaton's distribution; this to `positions`: "
            "RegBench, whose `results` end with the n-gram models (`kind` is `n-gram`)",
            "results[].tvd_interval": "95 % confidence interval of `tvd`, the language being the unit",
            "results[].languages": "test languages, a problem each",
            "results[].answers": "answers to lists as long as in training; this to `by_size`: `mqar`, `induction`",
            "results[].accuracy_beyond": "accuracy with longer lists; null where a transformer cannot read them",
            "results[].by_size": "for lists of `size` items {size, trained, chance, unread, mean, low, high, n}: "
            "whether training had such, accuracy of guessing among what the list has and was not asked back yet, "
            "answers beyond a transformer's context",
            "results[].chance": "accuracy of guessing among the answers that the story gave to facts of the kind",
            "results[].recalls": "facts asked for",
            "results[].recalls_beyond_context": "facts asked for where a transformer cannot read",
            "results[].by_form": "for each form of recall {mean, low, high, n}",
            "results[].by_distance": "the same for tokens between statement and answer, {from, to, mean, low, high, n}",
            "results[].accuracy_128": "with `--on recall-far`, share of questions answered right at most 128 tokens "
            "after the text said the answer last; so on to `accuracy_4096`; null where a transformer cannot read. "
            "There `by_distance` has also `asked` (the distance meant; `from` and `to` are the shortest and longest) "
            "and `beyond_context`, questions that a transformer cannot read",
            "results[].alone": "with `--on recall-after`, share of facts recalled in stories with nothing before them",
            "results[].clear_512": "the same after at most 512 tokens of other stories, none of which spoke of the "
            "thing; `clash_512`: where one did; so on to `clash_4096`; null where a transformer cannot read",
            "results[].by_length": "for each length {before, clear, clash, beyond_context}: `clear` and `clash` are "
            "{mean, low, high, n}, the last one counts facts that a transformer cannot read",
            "results[].window": "with `--on length`, tokens in the long windows; `context` is the training length, and "
            "`loss` the reference: that of the positions in the second half of windows of that length",
            "results[].windows": "such windows in the text",
            "results[].ratio_2": "loss of the positions from one to two training lengths over that of the same tokens "
            "in the reference; so on to `ratio_16`; null where it was not read",
            "results[].by_band": "for each band of positions `from` and `to`, `loss`, and `ratio` with its 95 % "
            "confidence interval `low`, `high`",
            "results[].semantic": "with `--on manyshot`, share of labels right where the class came before, in rows "
            "with semantic labels, up to the number of shots that training has",
            "results[].anonymous": "the same with anonymous labels",
            "results[].semantic_beyond": "semantic labels beyond that number; null where a transformer cannot read",
            "results[].anonymous_beyond": "anonymous labels beyond that number",
            "results[].by_shots": "for `labels` of either sort and `from` to `to` shots before the request {mean, low, "
            "high, n}, the row being the unit, and `chance`; `trained`: whether training rows have so many; `shown`: "
            "whether these are requests whose class came before",
            "results[].loss": "mean loss, nats per token",
            "results[].perplexity": "exp(`loss`)",
            "results[].bits_per_byte": "summed loss in bits over the bytes of the text",
            "results[].tokens": "predicted tokens",
            "results[].interval": "95 % confidence interval of the loss, [low, high]; null with a single window",
            "results[].positions": "positions in the window, from 0, only with `--by-position`; RegBench: their number",
            "results[].loss_by_position": "mean loss at each of them; only with `--by-position`",
            "crossing.of": "the second model, as given after `--ckpt`; this and what follows: only with `--crossing`",
            "crossing.over": "the first model",
            "crossing.position": "from 0, the first position from which on, to the end of the window, the second's "
            "smoothed loss is below the first's; 0 where it is everywhere, null where it is not at the end",
            "crossing.interval": "its 95 % confidence interval, [low, high], by a bootstrap over windows; high is null "
            "where more than 2.5 % of the resamples have no crossing, both where `position` is null",
            "crossing.share": "share of the resamples that have a crossing",
            "crossing.windows": "whole windows, which were drawn from",
        },
    ),
    "compare": (
        "mosaic.compare/1",
        {
            "studies": "for each study its results, as in studies/results/NAME.json: "
            "[formats.md](formats.md#results-of-studies)",
        },
    ),
    "compare --dry-run": (
        "mosaic.compare-dry-run/1",
        {
            "studies[].name": "name of the study",
            "studies[].cells[].cell": "name of the cell in the names of its runs",
            "studies[].cells[].runs": "its runs, done or not; at most this many until the sweep has chosen",
            "studies[].cells[].left": "how many are to do, one that was begun counting by the steps that are left",
            "studies[].cells[].parameters": "parameters of the model",
            "studies[].cells[].tokens": "training tokens of a run",
            "studies[].cells[].flops": "floating-point operations of a run's training",
            "studies[].cells[].seconds": "expected time of a run; null where none is to do, or for want of memory",
            "studies[].cells[].seconds_left": "expected time of all that is to do; 0 where it is not known",
            "studies[].runs[].name": "every run that the study may need",
            "studies[].runs[].state": "`new`, `begun`, `diverged` or `done`",
        },
    ),
    "generate": (
        "mosaic.generate/1",
        {
            "samples[].prompt": "the prompt",
            "samples[].text": "its continuation, without the prompt",
            "samples[].tokens": "new tokens, the one that ended it among them",
            "samples[].stop_reason": "`end_of_text`, `stop` or `length`",
            "prefill_tokens_per_second": "prompt tokens read per second",
            "decode_tokens_per_second": "tokens drawn per second after the first, all samples together; null for one",
        },
    ),
    "probe toy-3moons": (
        "mosaic.probe.toy-3moons/1",
        {
            "heads[].num_heads": "1 or 3",
            "heads[].error_before_joint": "mean absolute error from the longest single period up to the joint one",
            "heads[].error_after_joint": "mean absolute error from the joint period on, same triples",
            "heads[].ratio": "`error_before_joint` / `error_after_joint`",
            "heads[].ratio_heldout": "the same ratio on the triple that was held out",
            "heads[].disentanglement": "1: a moon for each head; 1/3: mixing ([formula](probes.md#disentanglement))",
            **{
                f"heads[].{key}_interval": "its 95 % confidence interval over seeds, [low, high]; null with one seed"
                for key in ("error_before_joint", "error_after_joint", "ratio", "ratio_heldout", "disentanglement")
            },
            "heads[].seeds": "number of seeds; each of the figures is a mean over them",
            "heads[].by_seed": "the same figures for every seed, in order",
            "heads[].triples[].periods": "three periods",
            "heads[].triples[].joint_period": "their least common multiple",
            "heads[].triples[].held_out": "whether it was kept from training",
            "heads[].triples[].before": "error before the joint period; null where that is the longest single one",
            "heads[].triples[].after": "error after it",
            "claim_holds": "both ratios are at most 1.3 with three heads and at least 2 with one",
            "setting": "how the memories were trained",
            "seed_drawn": "the seed whose memories the figures show: of median disentanglement with three heads",
            "seconds": "wall time of training and measuring",
        },
    ),
    "probe trace": (
        "mosaic.probe.trace/1",
        {
            "ckpt": "as given after `--ckpt`",
            "checkpoint": "folder of the checkpoint",
            "kind": "`mosaic` or `transformer`",
            "tokens": "the tokens of the text; here and below, line ends are ↵, tabs ⇥, and what "
            "else cannot be seen is spelled out (`\\x00`, `\\u202e`)",
            "position": "token after which the prediction stands",
            "target": "token whose logit is traced",
            "versus": "token over which its lead is traced instead; null without `--vs`",
            "logit": "what the contributions add up to, as the model gave it",
            "probability": "probability of `target`",
            "rank": "rank of `target`; 1 is the likeliest",
            "loss": "minus the logarithm of `probability`",
            "completeness_error": "size of the difference between `logit` and the sum of all contributions",
            "plain_logit_error": "largest difference from the logits of the model without hooks",
            "predictions[].token": "id of one of the likeliest next tokens",
            "predictions[].text": "the token",
            "predictions[].probability": "its probability",
            "predictions[].logit": "its logit",
            "sums[].kind": "as `contributions[].kind`",
            "sums[].layer": "layer; null for the embedding",
            "sums[].contribution": "what the layer's memories of the kind gave in all; the sums add up to `logit`",
            "contributions[].id": "`L3.H2.ctx.17` (layer 3, head 2, pair 17), `L1.H0.slot.411`, `L2.mlp` or "
            "`embedding`. Listed is what reaches a thousandth of the sum of all sizes, the largest first",
            "contributions[].kind": "`ctx` (`short`, `long` where memories have windows), `slot`, `mlp` or `embedding`",
            "contributions[].layer": "layer; null for the embedding",
            "contributions[].head": "head; null for what has none",
            "contributions[].position": "token at which the pair's key was made; null for a slot",
            "contributions[].key_text": "the last tokens that went into the key; null for what has none",
            "contributions[].value_text": "what was stored: the token after the key (transformer: the token itself); "
            "of a slot `pushes`, joined",
            "contributions[].pushes": "the three tokens that a slot's value makes likeliest; else empty",
            "contributions[].weight": "retrieval weight; null for what is not retrieved",
            "contributions[].contribution": "its part of `logit`",
            "contributions[].leave_one_out": "direct change of `logit` were it forgotten and its weight taken up by "
            "the others; null for what is not retrieved",
            "contributions[].unread": "change of the log-probability of `target` when the token at `position` and the "
            "7 before it read without this pair, all that they do computed again; 0, not tried, where none of them "
            "gives it a weight above 1e-4; null for what is not a stored pair",
            "contributions[].matches": "for the strongest pairs of a mosaic: tokens `asked` and `stored` "
            "(`asked_text`, `stored_text`) and their `share` of the cosine of the keys; else empty",
            "rest": "what the contributions that are not listed add up to",
            "costliest[].id": "the 5 pairs with the largest `unread` in size: as `contributions[].id`, and beside it "
            "the other keys of a contribution but matches",
            "costliest[].unread": "as `contributions[].unread`",
            "paths[].id": "as `contributions[].id`; beside it kind, key_text, value_text and pushes",
            "paths[].position": "token at which this part stands",
            "paths[].amount": "its part of `logit`",
            "paths[].children": "the same for what its value was made of",
            "paths[].rest": "what it was made of besides; children and rest add up to `amount`",
        },
    ),
    "probe patterns": (
        "mosaic.probe.patterns/1",
        {
            "results[].ckpt": "as given after `--ckpt`",
            "results[].checkpoint": "folder of the checkpoint",
            "results[].kind": "`mosaic` or `transformer`",
            "results[].on": "as given after `--on`",
            "results[].data_source": "what the text is: the data's source as used, or the file",
            "results[].context": "tokens in a window",
            "results[].windows": "windows read",
            "results[].distances": "distances in tokens: from 1, the pair stored just before; a transformer's from 0",
            "results[].even": "at each distance, the mean weight of a head that weighs all its pairs alike",
            "results[].heads[].layer": "number of the layer, from 0",
            "results[].heads[].head": "number of the head, from 0",
            "results[].heads[].memory": "`ctx`, or `short` or `long` where memories have windows",
            "results[].heads[].mean_weight": "at each distance, the mean over the positions that have a pair there",
            "results[].heads[].decay": "lambda, kept of a key's average per token; all of these where a model has it",
            "results[].heads[].half_life": "ln 2 / rho in tokens; null for no decay",
            "results[].heads[].beta": "inverse bandwidth of the contextual memory",
            "results[].heads[].beta_0": "where the bandwidth grows with the n pairs in memory: beta_1 n^power + beta_0",
            "results[].heads[].beta_1": "its factor",
            "results[].heads[].power": "its exponent",
            "results[].heads[].gamma": "the stored token's own share of its value",
            "results[].heads[].alpha": "length of a stored value",
            "results[].heads[].slot_decay": "lambda of the persistent memory",
            "results[].heads[].slot_half_life": "its half life in tokens; null for no decay",
            "results[].heads[].slot_beta": "its inverse bandwidth",
            "results[].heads[].slot_alpha": "factor of its values",
        },
    ),
    "probe memories": (
        "mosaic.probe.memories/1",
        {
            "ckpt": "as given after `--ckpt`",
            "checkpoint": "folder of the checkpoint",
            "on": "as given after `--on`",
            "data_source": "what the text is: the data's source as used, or the file",
            "context": "tokens in a window",
            "positions": "positions read",
            "called_above": "a slot whose weight never exceeded this counts as never called",
            "slots[].id": "name of the slot, as in traces",
            "slots[].layer": "number of its layer, from 0",
            "slots[].head": "number of its head, from 0",
            "slots[].slot": "its number in the head, from 0",
            "slots[].mean_weight": "its share of the head's retrieval weight",
            "slots[].top_share": "share of positions at which it weighs most in its head",
            "slots[].largest_weight": "its largest weight at any position",
            "slots[].up[].token": "a token that its value pushes up most; `down` holds those pushed down",
            "slots[].up[].text": "text of the token",
            "slots[].up[].push": "what it adds to the logit, over the mean token, times the last norm's deviation",
            "slots[].calls[].position": "position of the corpus at which it weighs most",
            "slots[].calls[].weight": "its weight there",
            "slots[].calls[].before": "the text up to there",
            "slots[].calls[].next": "the token that came next; null at the end of the text",
            "heads[].layer": "number of the layer",
            "heads[].head": "number of the head",
            "heads[].effective_slots": "exp of the entropy of the mean weights: slots used over the whole text",
            "heads[].effective_at_once": "exp of the mean entropy of the weights: slots that answer at one position",
            "heads[].never_called": "numbers of the slots that the text never called",
            "heads[].mean_weight": "of each slot",
            "heads[].largest_weight": "of each slot",
        },
    ),
    "probe edit": (
        "mosaic.probe.edit/1",
        {
            "ckpt": "as given after `--ckpt`",
            "prompt": "the text that positions count in",
            "edits": "the edits, as the entries of an edit file",
            "before[].token": "text of a token, the likeliest first; `--top` of them",
            "before[].id": "its id",
            "before[].probability": "its probability after the prompt",
            "before[].logit": "its logit",
            "after": "the same with the edits",
            "undone_bitwise": "whether the model, asked again without the edits, gave the same logits bit for bit",
            "continuation": "greedy continuations `before` and `after`; null without `--max-new-tokens`",
        },
    ),
    "probe verify": (
        "mosaic.probe.verify/1",
        {
            "ckpt": "as given after `--ckpt`",
            "checkpoint": "folder of the checkpoint",
            "kind": "`mosaic` or `transformer`",
            "samples": "prompts asked, one of each story. All figures below are objects `mean`, `low`, `high` (95 % "
            "interval) and `n`, the prompts that have the figure; null where there are too few",
            "completeness_error": "|sum of contributions - logit|; here `low` and `high` are the smallest and largest",
            "plain_logit_error": "largest difference to the logits without hooks; `low`, `high` as above",
            "answered": "share of prompts whose likeliest token is the answer's; all that follows is about these",
            "source_top1": "share whose first pair by contribution stores the answer where the fact was told",
            "source_top3": "the same for the first 3 pairs",
            "source_top10": "the same for the first 10",
            "costliest_in_top3": "share whose costliest single deletion is among the first 3 by `unread`",
            "deletion_efficacy": "share in which deleting the first 3 pairs changes the answer",
            "deletion_specificity": "share of the story's other predictions that this keeps",
            "source_deletion_efficacy": "share in which deleting all that is stored at the source changes the answer",
            "source_deletion_specificity": "share of the other predictions that this keeps",
            "edit_efficacy": "share in which replacing what is stored at the source gives the new answer",
            "edit_generalisation": "the same when the fact is asked for in another form",
            "edit_specificity": "share of the other predictions that replacing keeps",
            "comprehensiveness": "the answer's probability less that without the first shares of the pairs, mean over "
            "shares",
            "sufficiency": "the answer's probability less that with the first shares alone, mean over shares",
            "rank_correlation": "Spearman's, of contributions and measured costs of single deletions",
            "subset_correlation_contribution": "Spearman's, of summed contributions and costs of random tenths",
            "subset_correlation_unread": "the same for summed `unread`",
            "edit_harmonic_mean": "harmonic mean of the means of the edits' three figures, a number",
            "controls": "`random`, `recency`, `raw_weight`: the figures that a ranking has, for these rankings",
            "rankings": "the same for `contribution`, `leave_one_out` and `unread`",
            "leads": "by how much the trace is better than each control on the same prompts",
            "by_form": "the figures from `answered` to `subset_correlation_unread` for each form of recall",
            "by_kind": "the same for each kind of fact",
            "layers[].layer": "number of the layer, from 0. Of its costliest pair:",
            "layers[].direct": "`leave_one_out`, the direct change of the answer's logit",
            "layers[].total": "the measured change of the answer's log-probability when it is deleted",
            "layers[].gap": "`total` less `direct`",
        },
    ),
    "probe ablate": (
        "mosaic.probe.ablate/1",
        {
            "ckpt": "as given after `--ckpt`",
            "on": "as given after `--on`",
            "method": "`drop`, `zero` or `mean`",
            "distance": "[A, B]; null without `--distance`",
            "context": "tokens in a window",
            "windows": "windows read",
            "loss": "loss with all memories, nats per token",
            "results[].memory": "name of the memories that were taken away",
            "results[].loss": "loss without them, nats per token",
            "results[].change": "`loss` without them less `loss` with all",
            "results[].interval": "95 % confidence interval of the change, paired by window; null with one window",
        },
    ),
}


def pages(app: typer.Typer) -> dict[str, str]:
    """The generated pages: file name in docs/ -> text."""
    results = (DOCS / "results.md").read_text(encoding="utf-8")
    return {
        "cli.md": cli_page(app),
        "recipes.md": recipes_page(),
        "studies.md": studies_page(NOTE),
        "results.md": fill_blocks(results, DOCS.parent / RESULTS),
    }


def cli_page(app: typer.Typer) -> str:
    """Every command with its usage, arguments, options, keys and an example."""
    root = typer.main.get_command(app)
    described = list(commands(root))
    parts = ["# Commands", NOTE, root.help, *_root_section(root)]
    parts.append("\n".join(_contents_line(name, command) for name, command in described))
    parts.append(GENERAL)
    for name, command in described:
        parts += _command_section(name, command)
    return "\n\n".join(parts) + "\n"


def recipes_page() -> str:
    """Every key of a recipe, and the recipes that come with the toolkit."""
    parts = ["# Recipes", NOTE, RECIPES_INTRODUCTION]
    sections: dict[str, list[tuple[str, str, str]]] = {}
    for key, default, description in documented_keys():
        shown = default if default == "required" else f"`{_YAML_WORDS.get(default, default)}`"
        sections.setdefault(key.partition(".")[0], []).append((f"`{key}`", shown, description))
    for section, rows in sections.items():
        parts += [f"## Keys of `{section}`", table(("key", "default", "meaning"), rows)]
    parts.append("## Built-in recipes")
    paths = sorted(BUILTIN_RECIPES.glob("*.yaml"), key=lambda path: path.stem)
    head = ("recipe", "kind", "layers", "heads", "width", "context", "steps", "batch", "data")
    parts.append(table(head, [_recipe_row(path) for path in paths]))
    for path in paths:
        parts += [f"### {path.stem}", *header_comment(path), f"[recipes/{path.name}](../recipes/{path.name})"]
    return "\n\n".join(parts) + "\n"


RECIPES_INTRODUCTION = """
A recipe is one YAML file that says everything about one run: three sections, `model`, `data` and `train`, and two keys beside them.

- `extends: FILE` takes over another recipe, relative to this file. Maps merge, everything else replaces.
- `name: NAME` names the run and its data folder; default: the file's name.

A command takes the path of a recipe or the name of a built-in one. Values come from, in rising order: defaults, the recipe that is extended, the recipe, flags, `--set KEY=VALUE`. `mosaic train RECIPE --dry-run` shows each value and where it came from. An unknown key is refused.

Scalars are read as YAML 1.2 has them: `1e-4` and `1_000` are numbers, `no` is a word. The resolved recipe is saved with the run, and is itself a recipe.
""".strip()  # noqa: E501

_YAML_WORDS = {"None": "null", "True": "true", "False": "false"}


def commands(group, prefix: str = "") -> Iterator[tuple[str, typing.Any]]:
    """(name, command) of every command, those of nested groups as `group name`."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, f"{prefix}{name} ")
        elif not command.hidden:
            yield f"{prefix}{name}", command


def _contents_line(name: str, command) -> str:
    return f"- [`mosaic {name}`](#mosaic-{name.replace(' ', '-')}): {command.help.splitlines()[0]}"


def _root_section(root) -> list[str]:
    rows = [_option_row(option, {}) for option in root.params if not option.hidden]
    rows.append(("`-h`, `--help`", "", "Show the help; after a command, that command's."))
    return [code("mosaic [OPTIONS] COMMAND ..."), table(("option", "default", "meaning"), rows)]


def _command_section(name: str, command) -> list[str]:
    function = inspect.unwrap(command.callback)
    hints = typing.get_type_hints(function)
    arguments = [p for p in command.params if p.param_type_name == "argument" and not p.hidden]
    options = [p for p in command.params if p.param_type_name == "option" and not p.hidden]
    required = [_spelled(p, hints)[-1] for p in options if p.required]
    usage = " ".join(["mosaic", name, *required, *map(_argument_word, arguments), "[OPTIONS]"])
    parts = [f"## mosaic {name}", command.help, code(usage)]
    if arguments:
        rows = [(f"`{_argument_word(p)}`", _default(p), p.help) for p in arguments]
        parts.append(table(("argument", "default", "meaning"), rows))
    parts.append(table(("option", "default", "meaning"), [_option_row(p, hints) for p in options]))
    for invocation, (schema, keys) in JSON_OBJECTS.items():
        if invocation.split(" --")[0] == name:
            parts.append(f"`mosaic {invocation} --json` prints an object of the schema `{schema}`:")
            parts.append(table(("key", "meaning"), [(f"`{key}`", meaning) for key, meaning in keys.items()]))
    epilog = command.epilog or inspect.getmodule(function).EPILOG
    return [*parts, "Example:", code(epilog.removeprefix("Example: "))]


def _option_row(option, hints: dict) -> tuple[str, str, str]:
    return ", ".join(f"`{word}`" for word in _spelled(option, hints)), _default(option), option.help


def _spelled(option, hints: dict) -> list[str]:
    """Names of an option, the short one first, the last with the word for its value: `-s`, `--set KEY=VALUE`."""
    *others, last = sorted(option.opts, key=len)
    if option.is_flag:
        return [*others, last]
    return [*others, f"{last} {option.metavar or _value_word(hints[option.name])}"]


def _argument_word(argument) -> str:
    word = (argument.metavar or argument.name.upper()) + ("..." if argument.nargs == -1 else "")
    return word if argument.required else f"[{word}]"


def _value_word(hint: object) -> str:
    leaves = typing.get_args(hint) or (hint,)
    for leaf in leaves:
        if leaf in VALUE_WORDS:
            return VALUE_WORDS[leaf]
    return next((_value_word(leaf) for leaf in leaves if typing.get_args(leaf)), "VALUE")


def _default(parameter) -> str:
    if parameter.required:
        return "required"
    is_absent = parameter.default is None or parameter.default is False
    return "" if is_absent else f"`{parameter.default}`"


def _recipe_row(path: Path) -> tuple[str, ...]:
    recipe = load_recipe(path).recipe
    model, train, data = recipe.model, recipe.train, recipe.data
    source = {"hub": data.hub, "builtin": f"built-in {data.builtin}", "files": "files"}[data.source]
    shape = (model.num_layers, model.num_heads, model.d_model, model.context_length)
    numbers = [f"{number:,}" for number in (*shape, train.max_steps, train.batch_size)]
    return f"[{path.stem}](#{path.stem})", model.kind, *numbers, source


def write_pages(app: typer.Typer, check: bool) -> None:
    """Write the pages, or with `check` compare them.

    Raises:
        CheckFailed: a page is not what would be written.
        UsageError: there is no docs folder: this is not a checkout.
    """
    if not DOCS.is_dir():
        raise UsageError("the pages are written in a checkout of the repository", where=DOCS)
    for name, text in pages(app).items():
        path = DOCS / name
        if not check:
            path.write_text(text, encoding="utf-8")
            display.result(f"docs/{name}")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise CheckFailed(f"docs/{name} is stale", where=path, hint="Write it again: make docs")


if __name__ == "__main__":
    from mosaic_cli.app import app as whole_app  # run as a program, this file stands beside app.py, above the commands

    try:
        write_pages(whole_app, check="--check" in sys.argv[1:])
    except MosaicError as error:
        sys.exit(display.print_error(error, as_json=False, debug=False))

"""`mosaic generate`: continue a prompt."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mosaic_cli.commands import display
from mosaic_cli.commands.options import Ckpt, Debug, Device, Dtype, Json, PromptFile
from mosaic_cli.commands.prompt import read_prompt

if TYPE_CHECKING:
    from mosaic_cli.generation import Writer

LOOPS = ", much to write: by loops, which are compiled unless they were before"
EPILOG = 'Example: mosaic generate --ckpt quickstart "Once upon a time" --top-k 20'


def generate(
    ckpt: Ckpt,
    prompt: Annotated[str | None, typer.Argument(help="Text to continue; default: standard input.")] = None,
    n: Annotated[int, typer.Option("-n", "--num-samples", min=1, help="Continuations, written side by side.")] = 1,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest continuation, in tokens.")] = 200,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token each time.")] = 0.8,
    top_k: Annotated[int | None, typer.Option(help="Draw from the k likeliest tokens.")] = None,
    top_p: Annotated[
        float | None, typer.Option(help="Draw from the likeliest tokens that reach probability p.")
    ] = None,
    min_p: Annotated[float | None, typer.Option(help="Drop tokens below this share of the likeliest.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End where this text appears; repeatable.")] = None,
    prompt_file: PromptFile = None,
    edit: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write with the memories of the prompt edited as the file says.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the draws.")] = 0,
    compiled: Annotated[
        bool, typer.Option("--compile", help="Compile the step of decoding: on a GPU, for long texts; takes a while.")
    ] = False,
    device: Device = "auto",
    dtype: Dtype = "auto",
    json: Json = False,
    debug: Debug = False,
) -> None:
    """Continue a prompt with a trained model, streaming to stdout."""
    from mosaic_cli.core.kernels import load_for_decoding
    from mosaic_cli.core.model import arrange_for_decoding
    from mosaic_cli.device import choose_placement
    from mosaic_cli.generation import Sampling, Writer
    from mosaic_cli.probes.edit_files import load_edits
    from mosaic_cli.probes.edits import edited, resolve
    from mosaic_cli.runs.loading import load_trained

    text = read_prompt(prompt, prompt_file, "generate")
    sampling = Sampling(temperature, top_k, top_p, min_p)
    placement = choose_placement(device, dtype, decoding=True)
    trained = load_trained(ckpt, placement)
    loops = arrange_for_decoding(trained.model, placement.dtype, tokens=n * max_new_tokens)
    display.note(f"{trained.checkpoint}, {placement.reason}{LOOPS if loops else ''}")
    if loops:
        load_for_decoding(n)
    writer = Writer(
        trained.model,
        trained.tokenizer,
        text,
        placement,
        num_samples=n,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        seed=seed,
        stop=tuple(stop or ()),
        compiled=compiled,
    )
    edits = load_edits(edit, trained.tokenizer) if edit else []
    stream = n == 1 and not json
    with edited(trained.model, resolve(trained.model, writer.prompt_ids, edits)):
        for step, pieces in enumerate(writer):
            if stream:
                display.stream(pieces[0] if step else text + pieces[0])
    if stream:
        display.stream("\n")
    _report(writer, json, printed=stream)


def _report(writer: "Writer", json: bool, printed: bool) -> None:
    samples = writer.samples()
    if json:
        display.print_json(
            "mosaic.generate/1",
            {
                "samples": [vars(sample) for sample in samples],
                "prefill_tokens_per_second": writer.prefill_tokens_per_second,
                "decode_tokens_per_second": writer.decode_tokens_per_second,
            },
        )
    elif not printed:
        for number, sample in enumerate(samples, 1):
            display.result(f"--- {number} of {len(samples)} ({sample.stop_reason})\n{sample.prompt}{sample.text}")
    decode = writer.decode_tokens_per_second
    speed = f", decode {decode:,.0f} tokens/s" if decode else ""
    reasons = Counter(sample.stop_reason for sample in samples)
    ends = next(iter(reasons)) if len(samples) == 1 else ", ".join(f"{n} {reason}" for reason, n in reasons.items())
    display.note(f"prefill {writer.prefill_tokens_per_second:,.0f} tokens/s{speed}; stopped: {ends}")

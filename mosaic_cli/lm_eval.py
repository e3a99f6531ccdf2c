"""Models of this toolkit in EleutherAI's lm-eval: `python -m mosaic_cli.lm_eval --model mosaic --model_args ckpt=RUN`.

lm-eval finds models in a table of its own modules and asks no installed package for others, so its plain `lm_eval`
cannot know ours. Importing this module enters `mosaic` into the table; run as a program it then hands over to lm-eval's
command line, with all of its options.
"""

import math
import sys

import torch
from tqdm import tqdm

from mosaic_cli.commands import display
from mosaic_cli.device import choose_placement
from mosaic_cli.errors import MosaicError, UsageError
from mosaic_cli.evaluation.continuations import score_continuations
from mosaic_cli.generation import Sampling, Writer
from mosaic_cli.runs.loading import load_trained

try:
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("lm-eval is not installed: pip install 'mosaic-cli[lm-eval]'", name="lm_eval") from error

UNASKED_DEVICE = "cuda:0"  # what lm-eval's command line says when the user said nothing
SAMPLING = {"temperature", "top_k", "top_p", "min_p"}
GENERATION = {*SAMPLING, "do_sample", "until", "max_gen_toks"}


@register_model("mosaic")
class MosaicLM(TemplateLM):
    """A run's model, of either kind, for lm-eval.

    A mosaic reads every text whole, beyond the length it was trained on. A transformer cannot: as lm-eval's own models
    do, it reads a long text for perplexity in windows of its context length, and of a context that is too long it
    drops the beginning. Documents begin after an end-of-text token, as in training.

    Args:
        ckpt: as after `--ckpt`: a run's name or folder, a checkpoint folder, RUN@best, RUN@latest, RUN@STEP.
        device, dtype: as after `--device` and `--dtype`; lm-eval's default device, cuda:0, is taken as auto.
        batch_size: texts scored side by side; `auto`: as many as make 8,192 tokens. Texts are written one by one.
        max_batch_size: bound of `auto`.
        max_length: tokens read at most, to hold a mosaic to a transformer's window; default the model's own limit.

    Raises:
        UsageError: no such run or device, or a transformer asked to read more than its context length.
        CheckpointError: the checkpoint is damaged.
    """

    def __init__(
        self,
        ckpt: str,
        device: str = "auto",
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
        max_length: int | None = None,
    ):
        super().__init__()
        self.placement = choose_placement("auto" if device == UNASKED_DEVICE else device, dtype)
        display.note(f"evaluating {ckpt} on {self.placement.reason}")
        trained = load_trained(str(ckpt), self.placement)  # lm-eval reads a run named 1 as a number
        self.model, self.mosaic_tokenizer = trained.model, trained.tokenizer
        config = trained.model.config
        limit = config.longest_text
        if max_length is not None and not 1 <= max_length <= (limit or math.inf):
            most = "any number of" if limit is None else limit
            raise UsageError(
                f"max_length {max_length} is not possible: this {config.kind} reads 1 to {most} tokens",
                where="--model_args max_length",
            )
        self.max_length = max_length or limit
        is_auto = str(batch_size).startswith("auto")
        self.batch_size = max_batch_size if is_auto else int(batch_size)

    @property
    def eot_token_id(self) -> int:
        """The end-of-text token, which also stands before a text without a context."""
        return self.mosaic_tokenizer.end_of_text

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """Token ids of the text and nothing else: the tokenizers add none."""
        return self.mosaic_tokenizer.encode(string)

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """For requests (texts, context ids, continuation ids): log-probability in nats, and whether it is greedy."""
        scores = [None] * len(requests)
        scored = score_continuations(
            self.model,
            [(context, continuation) for _, context, continuation in requests],
            self.placement,
            max_length=self.max_length,
            batch_size=self.batch_size,
        )
        for index, score in tqdm(scored, "scoring", len(requests), disable=disable_tqdm):
            scores[index] = (score.log_probability, score.is_greedy)
            if (texts := requests[index][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, scores[index])
        return scores

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log-probability in nats of each whole text after an end-of-text token, in windows where there is a limit."""
        windows, owners = [], []
        for owner, request in enumerate(requests):
            tokens = self.tok_encode(*request.args)
            length = self.max_length or max(1, len(tokens))
            for window in get_rolling_token_windows(tokens, self.eot_token_id, max_seq_len=length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(owner)
        sums = [0.0] * len(requests)
        for owner, (found, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            sums[owner] += found
        for request, found in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, found)
        return sums

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """A continuation of each context, up to a stop text, the end of the text or the number of new tokens."""
        return [self._generate(*request.args) for request in tqdm(requests, "writing", disable=disable_tqdm)]

    def _generate(self, context: str, asked: dict) -> str:
        options = normalize_gen_kwargs(asked)
        if unknown := options.keys() - GENERATION:
            raise UsageError(
                f"generation knows no {', '.join(sorted(unknown))}",
                where="generation_kwargs",
                hint=f"Known: {', '.join(sorted(GENERATION))}.",
            )
        new_tokens = options["max_gen_toks"]
        sampling = {"temperature": float(options["do_sample"])}
        sampling |= {key: options[key] for key in options.keys() & SAMPLING}
        writer = Writer(
            self.model,
            self.mosaic_tokenizer,
            context,
            self.placement,
            max_prompt_tokens=None if self.max_length is None else self.max_length - new_tokens + 1,
            max_new_tokens=new_tokens,
            sampling=Sampling(**sampling),
            seed=int(torch.randint(2**31, ())),  # of the generator that lm-eval's --seed has set
            stop=tuple(options["until"]),
        )
        for _ in writer:
            pass
        text = writer.samples()[0].text
        self.cache_hook.add_partial("generate_until", (context, asked), text)
        return text


def main() -> int:
    """lm-eval's command line on sys.argv; returns the exit code that docs/cli.md promises for our own errors."""
    try:
        cli_evaluate()
    except MosaicError as error:
        return display.print_error(error, False, display.debugging())
    return 0


if __name__ == "__main__":
    sys.exit(main())

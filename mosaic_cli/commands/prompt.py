"""Where a prompt comes from: the command line, a file, or standard input."""

import sys
from pathlib import Path

from mosaic_cli.errors import UsageError


def read_prompt(prompt: str | None, prompt_file: Path | None, command: str) -> str:
    """The prompt of `mosaic COMMAND`; standard input where neither a text nor a file is given.

    Raises:
        UsageError: both are given, or there is nothing to read, or it is not UTF-8 text.
    """
    if prompt is not None and prompt_file is not None:
        raise UsageError("both a prompt and --prompt-file are given", where="--prompt-file", hint="Give one of them.")
    if prompt is None and prompt_file is None and sys.stdin.isatty():
        raise UsageError("no prompt", hint=f'Give one: mosaic {command} --ckpt RUN "Once upon"')
    try:
        if prompt_file is not None:
            return prompt_file.read_text(encoding="utf-8")
        text = sys.stdin.read() if prompt is None else prompt
        text.encode()  # bytes that are not UTF-8 come through the command line as surrogates
        return text
    except OSError as error:
        raise UsageError(f"the prompt cannot be read: {error.strerror}", where=prompt_file) from error
    except UnicodeError as error:
        raise UsageError(f"the prompt is not UTF-8 text: {error}", where=prompt_file or "the prompt") from error

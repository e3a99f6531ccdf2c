"""Every subcommand once on tiny settings, in a folder of its own that is deleted at the end.

The commands run in one process, through the same entry as `mosaic`, because loading torch for each would take longer
than all that they do.
"""

import contextlib
import io
import json
import os
import sys
import tempfile
import time

from mosaic_cli.app import run

TINY = (
    "-s model.num_layers=1 -s model.d_model=32 -s model.num_heads=2 -s model.num_slots=16 -s model.context_length=320 "
    "-s train.max_steps=20 -s train.batch_size=4 -s train.eval_interval=10 -s train.warmup_steps=2 "
    "-s data.num_documents=200 -s data.vocab_size=400 -s data.val_fraction=0.025 -s data.dir=data/smoke"
)
STORY = "Mia put the kite under the old bridge. Where was the kite?"
COMMANDS = f"""
--version
prepare builtin:stories --num-documents 200 --vocab-size 400 --val-fraction 0.025 --out data/smoke
prepare --verify data/smoke
train quickstart {TINY} --json
train quickstart-transformer {TINY} --json
train quickstart {TINY} --resume --steps 25
train quickstart {TINY} --dry-run
train quickstart {TINY} --profile 2
eval --ckpt quickstart --ckpt quickstart-transformer --by-position --max loss=20
compare stories-depth --dry-run -s data.num_documents=200 -s train.batch_size=1 -s train.max_steps=31
generate --ckpt quickstart STORY --max-new-tokens 60
generate --ckpt quickstart Once -n 2 --max-new-tokens 5 --json
probe toy-3moons --steps 2 --observations 36 --seeds 2
probe trace --ckpt quickstart STORY --html trace.html
probe trace --ckpt quickstart-transformer STORY --json
probe edit --ckpt quickstart STORY --delete L*.H*.ctx.3 --save edit.yaml
generate --ckpt quickstart STORY --edit edit.yaml --max-new-tokens 5
probe ablate --ckpt quickstart --windows 2
probe patterns --ckpt quickstart --ckpt quickstart-transformer --windows 2
probe memories --ckpt quickstart --windows 2
probe verify --ckpt quickstart --prompts 2
"""


def main() -> None:
    """Run the commands; exit with 1 at the first that fails."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for line in COMMANDS.strip().splitlines():
            print(f"$ mosaic {line}", flush=True)
            _run([STORY if word == "STORY" else word for word in line.split()])
        os.chdir("/")
    print(f"smoke: all commands ran in {time.monotonic() - started:.0f} s")


def _run(words: list[str]) -> None:
    sys.argv = ["mosaic", *words]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run()
    if code != 0:
        sys.exit(f"smoke: exit code {code} of: mosaic {' '.join(words)}\n{out.getvalue()}")
    if "--json" in words:
        json.loads(out.getvalue())


if __name__ == "__main__":
    main()

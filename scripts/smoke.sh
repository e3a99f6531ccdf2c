#!/bin/sh
# Every subcommand once on tiny settings, in a folder of its own that is deleted at the end.
set -eu
: "${MOSAIC:=mosaic}"
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"

tiny="-s model.num_layers=1 -s model.d_model=32 -s model.num_heads=2 -s model.num_slots=16 -s model.context_length=32
      -s train.max_steps=20 -s train.batch_size=4 -s train.eval_interval=10 -s train.warmup_steps=2
      -s data.num_documents=200 -s data.vocab_size=400 -s data.val_fraction=0.025 -s data.dir=data/smoke"

"$MOSAIC" --version
"$MOSAIC" prepare builtin:stories --num-documents 200 --vocab-size 400 --val-fraction 0.025 --out data/smoke
"$MOSAIC" prepare --verify data/smoke
for name in quickstart quickstart-transformer; do
    # shellcheck disable=SC2086  # the settings are meant to split
    "$MOSAIC" train "$name" $tiny --json
done
# shellcheck disable=SC2086
"$MOSAIC" train quickstart $tiny --resume --steps 25
# shellcheck disable=SC2086
"$MOSAIC" train quickstart $tiny --dry-run
"$MOSAIC" eval --ckpt quickstart --ckpt quickstart-transformer --by-position --max loss=20
"$MOSAIC" generate --ckpt quickstart "Once upon a time" --max-new-tokens 60
"$MOSAIC" generate --ckpt quickstart "Once" -n 2 --max-new-tokens 5 --json
"$MOSAIC" probe toy-3moons --steps 2 --observations 36 --seeds 2
"$MOSAIC" probe trace --ckpt quickstart "Once upon a time" --html trace.html
"$MOSAIC" probe trace --ckpt quickstart-transformer "Once upon a time" --json
echo "smoke: all commands ran"

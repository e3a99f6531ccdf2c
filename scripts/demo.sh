#!/bin/sh
# The first look: two models of equal size on the built-in stories, side by side, and a story.
set -eu
: "${MOSAIC:=mosaic}"
started=$(date +%s)

for name in quickstart quickstart-transformer; do
    if [ ! -f "runs/$name/run.json" ]; then
        "$MOSAIC" train "$name"
    else
        "$MOSAIC" train "$name" --resume
    fi
done
"$MOSAIC" eval --ckpt quickstart --ckpt quickstart-transformer --by-position
echo
echo "A story by the mosaic:"
echo
"$MOSAIC" generate --ckpt quickstart "Once upon a time" --temperature 0.5 --max-new-tokens 250
echo
echo "All of this took $(($(date +%s) - started)) seconds."

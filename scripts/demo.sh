#!/bin/sh
# The first look: two models of equal size on the built-in stories, side by side, a story, and where its words came from.
set -eu
: "${MOSAIC:=mosaic}"
started=$(date +%s)
story=runs/quickstart/story.txt
page=runs/quickstart/story.html

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
"$MOSAIC" generate --ckpt quickstart "Once upon a time" --temperature 0.5 --max-new-tokens 250 | tee "$story"
echo
echo "And where its next word would come from:"
echo
"$MOSAIC" probe trace --ckpt quickstart --prompt-file "$story" --position -2 --html "$page"
echo
echo "Open $page in a browser to follow every word of the story to its memories."
echo "All of this took $(($(date +%s) - started)) seconds."

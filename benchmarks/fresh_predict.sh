#!/bin/sh
# Predicts from a bundle's zip alone: in a new environment with this commit's wheel [image], in an empty folder.
#   sh benchmarks/fresh_predict.sh BUNDLE.zip IMAGES METADATA.csv [SUBMISSION.csv SAMPLE.csv]
# With the experiment's own submission.csv and the sample submission it was made from, the bytes are compared.
# PYTHON: the Python to use, 3.11 or newer. FRESH: an empty folder to work in, else a temporary one. Installs some 5 GB.
set -eu
if [ "$#" -ne 3 ] && [ "$#" -ne 5 ]; then
    echo "usage: $0 BUNDLE.zip IMAGES METADATA.csv [SUBMISSION.csv SAMPLE.csv]" >&2
    exit 2
fi
checkout=$(cd "$(dirname "$0")/.." && pwd)
bundle=$(realpath "$1")
images=$(realpath "$2")
metadata=$(realpath "$3")
own=${4:+$(realpath "$4")}
sample=${5:+$(realpath "$5")}
fresh=$(realpath "${FRESH:-$(mktemp -d)}")
mkdir -p "$fresh/source" "$fresh/empty"
unset PYTHONPATH

echo "== an environment in $fresh"
git -C "$checkout" archive HEAD | tar -x -C "$fresh/source"
"${PYTHON:-python3}" -m venv "$fresh/venv"
"$fresh/venv/bin/pip" wheel --quiet --no-deps --wheel-dir "$fresh" "$fresh/source"
"$fresh/venv/bin/pip" install --quiet --constraint "$fresh/source/constraints.txt" "$(ls "$fresh"/dermstack-*.whl)[image]"
rm -r "$fresh/source"

echo "== predictions in an empty folder"
cd "$fresh/empty"
cp "$bundle" bundle.zip
if [ -z "$own" ]; then
    "$fresh/venv/bin/dermstack" predict --bundle bundle.zip --images "$images" --metadata "$metadata" --out predictions.csv
else
    "$fresh/venv/bin/dermstack" predict --bundle bundle.zip --images "$images" --metadata "$metadata" \
        --out predictions.csv --submission submission.csv --sample "$sample"
    if cmp submission.csv "$own"; then
        echo "the same bytes as $own"
    else
        exit 1
    fi
fi

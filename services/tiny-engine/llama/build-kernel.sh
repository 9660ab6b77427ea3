#!/usr/bin/env bash
# Compiles kernel.c to kernel.wasm. Needs the compiler that `pip install ziglang==0.13.0` brings (pinned: another version
# writes other bytes): build-kernel.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python3}
"$python" -c 'import ziglang, importlib.metadata as m; assert m.version("ziglang") == "0.13.0"'
"$python" -m ziglang cc --target=wasm32-freestanding -O3 -ffp-contract=off -msimd128 -mno-relaxed-simd -nostdlib -fno-builtin \
  -Wl,--no-entry -Wl,-z,stack-size=16384 -Wl,--import-memory -Wl,--export=__heap_base -Wl,--strip-all -o kernel.wasm kernel.c

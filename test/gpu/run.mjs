// The GPU run: vLLM with P2P NCCL through router and wrappers on two GPUs, each step recorded, none stopping the next.
// node run.mjs --out DIR --models DIR [--only STEP,STEP] [--rehearse VLLM | --stand-in]
// Without a GPU: --rehearse runs what can be run with a vLLM for the CPU and NIXL (DIR is one model then), --stand-in all of
// it with a program that passes for vLLM 0.23.0, which proves this script and nothing of vLLM.
import { execFileSync } from "node:child_process";
import { compare, eachOf, firstToken } from "./ask.mjs";
import { controlSteps } from "./control-steps.mjs";
import { bare, PAIR, UP, up } from "./deployments.mjs";
import { loadSteps } from "./load-steps.mjs";
import { pairSteps } from "./pair-steps.mjs";
import { allOk, step, writeReport } from "./report.mjs";
import { tail } from "./servers.mjs";
import { FLAGS, OUT, PROMPTS, rehearsal, TINY, withoutGpu } from "./settings.mjs";

await step("versions", async () => ({
  node: process.version,
  gpus: withoutGpu
    ? "none"
    : execFileSync("nvidia-smi", ["--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"], {
        encoding: "utf8",
      })
        .trim()
        .split("\n"),
  links: withoutGpu ? "" : execFileSync("nvidia-smi", ["topo", "-m"], { encoding: "utf8" }).slice(0, 800),
}));

let reference;
let noise;
await step("reference", async () => {
  const plain = await bare(
    "aggregated",
    ["--enforce-eager", ...(rehearsal ? [] : ["--gpu-memory-utilization", "0.6"])],
    { CUDA_VISIBLE_DEVICES: "0" },
  );
  try {
    reference = await eachOf(PROMPTS, 1, (prompt) => firstToken(plain.url, "m", prompt));
    noise = compare(await eachOf(PROMPTS, 24, (prompt) => firstToken(plain.url, "m", prompt)), reference);
    return { noise };
  } finally {
    await plain.stop();
  }
});

let pair;
await step("start", async () => {
  pair = await up("pair", TINY, [...UP, ...PAIR], FLAGS);
  return {
    lines: tail(pair.log, 400)
      .split("\n")
      .filter((line) => /ready/.test(line))
      .map((line) => line.slice(0, 200)),
  };
});
if (pair !== undefined) {
  await pairSteps(pair, reference, noise);
  await pair.stop();
}
if (!rehearsal) {
  await controlSteps();
  await loadSteps();
}
writeReport();
console.log(`report: ${OUT}/report.md`);
process.exit(allOk() ? 0 : 1);

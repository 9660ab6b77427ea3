// What the GPU run was asked to do, and what follows from it for every step.
import { existsSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";
import { randomIds } from "./ask.mjs";

const { values: o } = parseArgs({
  options: {
    out: { type: "string" },
    models: { type: "string" },
    only: { type: "string" },
    rehearse: { type: "string" },
    "stand-in": { type: "boolean" },
  },
});
export const OUT = o.out ?? ".";
export const rehearsal = o.rehearse !== undefined;
export const TOKEN = "gpu-run";
export const withoutGpu = rehearsal || o["stand-in"] === true;
export const VLLM =
  o.rehearse ?? (o["stand-in"] === true ? `${process.execPath} ${standIn()}` : "python3 -m vllm.entrypoints.cli.main");
export const CONNECTOR = rehearsal ? "nixl" : "p2p-nccl";
/** A folder of models, or the one model of a rehearsal. */
export const MODELS = o.models;
export const TINY = rehearsal ? MODELS : `${MODELS}/tiny`;
export const FLAGS = rehearsal
  ? [
      "--dtype",
      "float32",
      "--enforce-eager",
      "--max-model-len",
      "512",
      "--block-size",
      "32",
      "--kv-cache-memory-bytes",
      "64M",
      "--distributed-executor-backend",
      "uni",
    ]
  : ["--dtype", "bfloat16", "--max-model-len", "4096", "--attention-backend", "FLASH_ATTN"];
export const LENGTHS = rehearsal
  ? [1, 2, 31, 32, 33, 100, 200, 400]
  : [1, 2, 15, 16, 17, 100, 257, 500, 1000, 1023, 1500, 2000];
export const PROMPTS = Array.from({ length: 24 }, (_, index) => randomIds(index + 1, LENGTHS[index % LENGTHS.length]));

/** The steps asked for; undefined: all. */
export const only = o.only?.split(",");
const OF_THE_PAIR = [
  "correct",
  "shapes",
  "doctor",
  "kv_moved_by_nccl",
  "cancelled_between_legs",
  "prefill_killed",
  "decode_killed",
  "decode_killed_in_prefill",
  "decode_starved",
];
// A step that is asked for alone brings along what it stands on.
if (only?.some((name) => OF_THE_PAIR.includes(name))) only.push("start");
if (only?.includes("correct")) only.push("reference");

/** In the kit, Tandem's build is beside these files; in a checkout, two folders up. */
function standIn() {
  const found = ["../", "../../"].map((up) =>
    fileURLToPath(new URL(`${up}dist/services/tiny-engine/stand-in.js`, import.meta.url)),
  );
  return found.find((file) => existsSync(file));
}

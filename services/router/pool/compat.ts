// Which instances can be paired: the facts that both engines must agree on, or the KV of one means nothing to the other.
import type { Info } from "#gen/tandem/instance/v1/instance_pb.js";

const FACTS = [
  ["model", "the model"],
  ["connector", "the KV connector"],
  ["engineVersion", "the engine's version"],
  ["dtype", "the number type"],
  ["blockSize", "the KV block size"],
  ["tpSize", "the tensor-parallel size"],
] as const satisfies readonly (readonly [keyof Info, string])[];

/** Why two instances can't be paired. */
export interface Misfit {
  /** "the KV block size": fit for a client. */
  readonly fact: string;
  /** "they differ in the KV block size: 16 on prefill, 32 on decode": for an operator. */
  readonly text: string;
}

/** Undefined where the two can be paired. "" and 0 are unknown, and agree. */
export function misfitOf(prefill: Info, decode: Info): Misfit | undefined {
  for (const [key, fact] of FACTS) {
    const [a, b] = [prefill[key], decode[key]];
    if (a === b || a === "" || b === "" || a === 0 || b === 0) continue;
    return { fact, text: `they differ in ${fact}: ${a} on prefill, ${b} on decode` };
  }
  // Part of NIXL's compatibility hash: two names of the same files are two models to it.
  const [a, b] = [prefill.modelRoot, decode.modelRoot];
  if (prefill.connector === "nixl" && prefill.engine === "vllm" && a !== "" && b !== "" && a !== b) {
    const fact = "how they were told their model";
    return { fact, text: `they differ in ${fact}, and NIXL does not pair such: ${a} on prefill, ${b} on decode` };
  }
  return undefined;
}

/** Alike for instances that fit the same others: with it a fleet of hundreds is compared build by build. */
export function buildOf(info: Info): string {
  return JSON.stringify([...FACTS.map(([key]) => info[key]), info.modelRoot, info.engine]);
}

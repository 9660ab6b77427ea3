// Which instances can be paired: both engines must agree on these facts, or one can't use the KV of the other.
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
  /** "the KV block size", for a client. */
  readonly fact: string;
  /** "they differ in the KV block size: 16 on prefill, 32 on decode", for an operator. */
  readonly text: string;
}

/** Undefined if the two can be paired. "" and 0 mean unknown, and match any value. */
export function misfitOf(prefill: Info, decode: Info): Misfit | undefined {
  for (const [key, fact] of FACTS) {
    const [a, b] = [prefill[key], decode[key]];
    if (a === b || a === "" || b === "" || a === 0 || b === 0) continue;
    return { fact, text: `they differ in ${fact}: ${a} on prefill, ${b} on decode` };
  }
  // NIXL's compatibility hash includes the model's name, so two names of the same files are two models.
  const [a, b] = [prefill.modelRoot, decode.modelRoot];
  if (prefill.connector === "nixl" && prefill.engine === "vllm" && a !== "" && b !== "" && a !== b) {
    const fact = "the model path or name that they were started with";
    return { fact, text: `they differ in ${fact}, so NIXL does not pair them: ${a} on prefill, ${b} on decode` };
  }
  return undefined;
}

/** Equal for instances that fit the same partners, so that a fleet of hundreds is compared build by build. */
export function buildOf(info: Info): string {
  return JSON.stringify([...FACTS.map(([key]) => info[key]), info.modelRoot, info.engine]);
}

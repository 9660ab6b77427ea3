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

/** Why the two can't be paired, in words for an operator; undefined where they can. "" and 0 are unknown, and agree. */
export function pairFault(prefill: Info, decode: Info): string | undefined {
  for (const [key, name] of FACTS) {
    const [a, b] = [prefill[key], decode[key]];
    if (a === b || a === "" || b === "" || a === 0 || b === 0) continue;
    return `they differ in ${name}: ${a} on prefill, ${b} on decode`;
  }
  // Part of NIXL's compatibility hash: two texts for the same files are two models to it.
  const [a, b] = [prefill.modelRoot, decode.modelRoot];
  if (prefill.connector === "nixl" && prefill.engine === "vllm" && a !== "" && b !== "" && a !== b) {
    return `they were given their model by different texts, which NIXL does not pair: ${a} on prefill, ${b} on decode`;
  }
  return undefined;
}

export function pairable(prefill: Info, decode: Info): boolean {
  return pairFault(prefill, decode) === undefined;
}

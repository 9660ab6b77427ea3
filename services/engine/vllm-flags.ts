// Flags for vLLM that a user adds. Most don't concern Tandem; some would undo what Tandem relies on, and are
// refused with what to do instead.
import { ConfigError } from "../common/config.ts";

/**
 * By name as vLLM's parser knows it: `--max-model-len`. Its parser takes `_` for `-`, and reads `--a.b` as a member of
 * `--a`. Undefined: a switch. Of several values the first; of a flag given twice the last, as vLLM does.
 */
export type GivenFlags = ReadonlyMap<string, string | undefined>;

const NETWORK = "Tandem gives vLLM a socket that only this user can open";
/** Flags that are refused in every role, short names included, by the reason. */
const REFUSED = new Map(
  Object.entries({
    "give it with --model": ["--model"],
    "give it with --served_name": ["--served-model-name"],
    [NETWORK]: ["--host", "--port", "--uds", "--root-path", "--ssl-keyfile", "--ssl-certfile", "--ssl-ca-certs"],
    [`${NETWORK}; give the router an --api-key`]: ["--api-key"],
    "Tandem speaks vLLM's HTTP API": ["--grpc", "--headless"],
    "Tandem speaks vLLM's OpenAI API": ["--tokens-only"],
    "Tandem works out how KV moves from the role and --connector": ["--kv-transfer-config", "--ec-transfer-config"],
    "without its counters a stalled engine would go unnoticed": ["--disable-log-stats"],
    "a file could hold any of the flags that Tandem sets; give its lines as flags after --": ["--config"],
    "several API servers share one set of counters badly; start more instances instead": ["--api-server-count", "-asc"],
    "one engine an instance: start more instances instead": ["--data-parallel-size", "-dp"],
    "it would sit between Tandem and the engine": ["--middleware"],
  }).flatMap(([why, names]) => names.map((name) => [name, why] as const)),
);

export function givenFlags(words: readonly string[]): GivenFlags {
  const isFlag = (word: string): boolean => /^--?[A-Za-z]/.test(word);
  const found = new Map<string, string | undefined>();
  for (const [index, word] of words.entries()) {
    if (!isFlag(word)) continue;
    const [, name, value] = /^([^=]*)(?:=([^]*))?$/.exec(word)!;
    const next = words[index + 1];
    found.set(name!.replaceAll("_", "-"), value ?? (next === undefined || isFlag(next) ? undefined : next));
  }
  return found;
}

/** @throws ConfigError for the first flag that would break the pairing, open the engine to others, or blind Tandem. */
export function checkGivenFlags(words: readonly string[]): GivenFlags {
  const flags = givenFlags(words);
  for (const name of flags.keys()) {
    const why = refusal(name);
    if (why !== undefined) throw new ConfigError(`vLLM's ${name} can't be given: ${why}.`);
  }
  return flags;
}

function refusal(name: string): string | undefined {
  // `--kv-transfer-config.kv_role x` sets a member.
  const base = name.split(".", 1)[0]!;
  const why = REFUSED.get(base.startsWith("--data-parallel-") ? "--data-parallel-size" : base);
  if (why !== undefined || base.length < 4) return why;
  // argparse takes any unambiguous beginning for the whole: `--kv-transfer` is --kv-transfer-config.
  const meant = [...REFUSED.keys()].find((key) => key.startsWith(base));
  return meant && `it may be read as ${meant} (${REFUSED.get(meant)}); write flags out in full`;
}

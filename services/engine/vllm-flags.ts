// Flags for vLLM that a user adds. Most don't concern Tandem; some would undo what Tandem relies on, and are
// refused with what to do instead.
import { ConfigError } from "../common/config.ts";

export interface GivenFlag {
  /** As vLLM's parser knows it: `--max-model-len`. Its parser takes `_` for `-`, and reads `--a.b` as a member of `--a`. */
  readonly name: string;
  /** Undefined for a switch; of several values the first. */
  readonly value: string | undefined;
}

const NETWORK = "Tandem gives vLLM a port on loopback, where clients can't reach it";
const PAIRING = "Tandem works out how KV moves from the role and --connector";

/** Flags that are refused in every role. Short names included. */
const REFUSED: Readonly<Record<string, string>> = {
  "--model": "give it with --model",
  "--served-model-name": "give it with --served_name",
  "--host": NETWORK,
  "--port": NETWORK,
  "--uds": NETWORK,
  "--root-path": NETWORK,
  "--ssl-keyfile": NETWORK,
  "--ssl-certfile": NETWORK,
  "--ssl-ca-certs": NETWORK,
  "--api-key": `${NETWORK}; give the router an --api-key`,
  "--grpc": "Tandem speaks vLLM's HTTP API",
  "--headless": "Tandem speaks vLLM's HTTP API",
  "--tokens-only": "Tandem speaks vLLM's OpenAI API",
  "--kv-transfer-config": PAIRING,
  "--disable-log-stats": "without its counters a stalled engine would go unnoticed",
  "--config": "a file could hold any of the flags that Tandem sets; give its lines as flags after --",
  "--api-server-count": "several API servers share one set of counters badly; start more instances instead",
  "--data-parallel-size": "one engine an instance: start more instances instead",
  "-dp": "one engine an instance: start more instances instead",
  "-asc": "several API servers share one set of counters badly; start more instances instead",
  "--middleware": "it would sit between Tandem and the engine",
};
/** Any flag that starts so. */
const REFUSED_PREFIXES: readonly (readonly [string, string])[] = [
  ["--data-parallel-", "one engine an instance: start more instances instead"],
  ["--ec-transfer-config", PAIRING],
];

export function givenFlags(words: readonly string[]): GivenFlag[] {
  const found: GivenFlag[] = [];
  for (let index = 0; index < words.length; index++) {
    const word = words[index]!;
    if (!isFlag(word)) continue;
    const equals = word.indexOf("=");
    const written = equals === -1 ? word : word.slice(0, equals);
    const next = words[index + 1];
    const value = equals !== -1 ? word.slice(equals + 1) : next === undefined || isFlag(next) ? undefined : next;
    found.push({ name: written.replaceAll("_", "-"), value });
  }
  return found;
}

/** @throws ConfigError for the first flag that would break the pairing, open the engine to others, or blind Tandem. */
export function checkGivenFlags(words: readonly string[]): readonly GivenFlag[] {
  const flags = givenFlags(words);
  for (const { name } of flags) {
    const why = refusal(name);
    if (why !== undefined) throw new ConfigError(`vLLM's ${name} can't be given: ${why}.`);
  }
  return flags;
}

function refusal(name: string): string | undefined {
  // `--kv-transfer-config.kv_role x` sets a member.
  const base = name.split(".", 1)[0]!;
  if (Object.hasOwn(REFUSED, base)) return REFUSED[base];
  const prefix = REFUSED_PREFIXES.find(([start]) => base.startsWith(start));
  if (prefix !== undefined) return prefix[1];
  // argparse takes any unambiguous beginning for the whole: `--kv-transfer` is --kv-transfer-config.
  const meant = base.length < 4 ? undefined : Object.keys(REFUSED).find((key) => key.startsWith(base));
  return meant === undefined ? undefined : `it may be read as ${meant} (${REFUSED[meant]}); write flags out in full`;
}

export function flagOf(flags: readonly GivenFlag[], ...names: readonly string[]): GivenFlag | undefined {
  return flags.find(({ name }) => names.includes(name));
}

function isFlag(word: string): boolean {
  return /^--?[A-Za-z]/.test(word);
}

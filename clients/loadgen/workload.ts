// The requests of a load. Each has its own prompt, so that no prefix cache of an engine can answer it. An index always
// has the same prompt, so that two servers can be compared word by word.
import { seededRandom } from "./arrivals.ts";

export interface WorkloadOptions {
  readonly model: string;
  /** Words of a prompt; about as many tokens. */
  readonly promptWords: number;
  /** Tokens of an answer. The request makes the engine generate exactly this many. */
  readonly outputTokens: number;
  readonly seed: number;
}

export const PATH = "/v1/completions";

const WORDS =
  "the river carries light over stone while old boats wait for wind and someone counts the slow bells of evening".split(
    " ",
  );

/** Body of request `index`. */
export function requestBody(options: WorkloadOptions, index: number): string {
  const random = seededRandom(options.seed * 1_000_003 + index);
  const words = [`${index}:`];
  while (words.length < options.promptWords) words.push(WORDS[Math.floor(random() * WORDS.length)]!);
  return JSON.stringify({
    model: options.model,
    prompt: words.join(" "),
    max_tokens: options.outputTokens,
    temperature: 0,
    ignore_eos: true,
    stream: true,
    stream_options: { include_usage: true },
  });
}

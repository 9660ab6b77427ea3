// Logprobs in the three shapes that vLLM sends: completions', chat's, and the prompt's.
import type { TokenLogprobs, Tokenizer } from "../engine.ts";

/** A token as text; specials by name, a piece of a character as U+FFFD. */
function tokenText(tokenizer: Tokenizer, token: number): string {
  return tokenizer.text(token) ?? "\ufffd";
}

/** OpenAI's old shape. Offsets count characters from the start of the answer, echoed prompt included. */
export class CompletionLogprobs {
  readonly #tokenizer: Tokenizer;
  readonly #alternatives: number;
  #offset = 0;
  #offsets: number[] = [];
  #values: (number | null)[] = [];
  #texts: string[] = [];
  #tops: string[] = [];

  constructor(tokenizer: Tokenizer, alternatives: number) {
    this.#tokenizer = tokenizer;
    this.#alternatives = alternatives;
  }

  add(token: number, logprobs: TokenLogprobs | null): void {
    const text = tokenText(this.#tokenizer, token);
    this.#offsets.push(this.#offset);
    this.#values.push(logprobs?.logprob ?? null);
    this.#texts.push(text);
    this.#tops.push(logprobs === null ? "null" : this.#top(text, logprobs));
    this.#offset += text.length;
  }

  /** The entries added since the last call, as JSON. */
  take(): string {
    const json = `{"text_offset":${JSON.stringify(this.#offsets)},"token_logprobs":${JSON.stringify(this.#values)},"tokens":${JSON.stringify(this.#texts)},"top_logprobs":[${this.#tops.join(",")}]}`;
    this.#offsets = [];
    this.#values = [];
    this.#texts = [];
    this.#tops = [];
    return json;
  }

  /** Written by hand: an object would put tokens that look like numbers first. */
  #top(text: string, { logprob, top }: TokenLogprobs): string {
    const entries = new Map([[text, logprob]]);
    for (const other of top.slice(0, this.#alternatives)) {
      const otherText = tokenText(this.#tokenizer, other.token);
      if (!entries.has(otherText)) entries.set(otherText, other.logprob);
    }
    return `{${[...entries].map(([key, value]) => `${JSON.stringify(key)}:${value}`).join(",")}}`;
  }
}

export function chatLogprobsJson(
  tokenizer: Tokenizer,
  tokens: readonly number[],
  logprobs: readonly TokenLogprobs[],
): string {
  const entry = (token: number, logprob: number): string =>
    `"token":${JSON.stringify(tokenText(tokenizer, token))},"logprob":${logprob},"bytes":${JSON.stringify([...tokenizer.bytes(token)])}`;
  const content = tokens.map((token, index) => {
    const { logprob, top } = logprobs[index]!;
    return `{${entry(token, logprob)},"top_logprobs":[${top.map((other) => `{${entry(other.token, other.logprob)}}`).join(",")}]}`;
  });
  return `{"content":[${content.join(",")}]}`;
}

/** Keyed by token id, in order of mention: the prompt's own token first. */
export function promptLogprobsJson(
  tokenizer: Tokenizer,
  prompt: readonly number[],
  logprobs: readonly (TokenLogprobs | null)[],
): string {
  const entry = (token: number, logprob: number, rank: number): string =>
    `"${token}":{"logprob":${logprob},"rank":${rank},"decoded_token":${JSON.stringify(tokenText(tokenizer, token))}}`;
  const items = logprobs.map((one, index) => {
    if (one === null) return "null";
    const others = one.top.map((other) => entry(other.token, other.logprob, other.rank));
    return `{${[entry(prompt[index]!, one.logprob, one.rank), ...others].join(",")}}`;
  });
  return `[${items.join(",")}]`;
}

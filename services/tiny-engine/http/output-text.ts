// Tokens to text for one choice: characters that are spread over several tokens, and stop strings that
// may begin in one token and end in another.
import { StringDecoder } from "node:string_decoder";
import type { Tokenizer } from "../engine.ts";

export class OutputText {
  readonly #tokenizer: Tokenizer;
  readonly #stops: readonly string[];
  readonly includeStop: boolean;
  readonly #minTokens: number;
  /** Number of characters at the end that may turn out to belong to a stop string. */
  readonly #holdChars: number;
  #decoder: StringDecoder | null = null;
  #held = "";
  #tokenCount = 0;
  /** The stop string that ended the text. */
  stoppedBy: string | null = null;

  constructor(tokenizer: Tokenizer, stops: readonly string[], includeStop: boolean, minTokens: number) {
    this.#tokenizer = tokenizer;
    this.#stops = stops;
    this.includeStop = includeStop;
    this.#minTokens = minTokens;
    this.#holdChars = stops.reduce((most, stop) => Math.max(most, stop.length), 0) - 1;
  }

  /** The text that is certain now. Empty while a character or a possible stop string is incomplete. */
  push(token: number): string {
    const text = this.#textOf(token);
    if (this.#stops.length === 0) return text;
    this.#tokenCount++;
    const seen = this.#held + text;
    // As in vLLM, text from before min_tokens was reached never stops the answer.
    if (this.#tokenCount > this.#minTokens) {
      for (const stop of this.#stops) {
        const at = seen.indexOf(stop);
        if (at === -1) continue;
        this.stoppedBy = stop;
        this.#held = "";
        return seen.slice(0, this.includeStop ? at + stop.length : at);
      }
    }
    const certain = Math.max(0, seen.length - this.#holdChars);
    this.#held = seen.slice(certain);
    return seen.slice(0, certain);
  }

  /** The text that was held back, once no token follows. */
  flush(): string {
    const rest = this.#held + (this.#decoder?.end() ?? "");
    this.#held = "";
    return rest;
  }

  #textOf(token: number): string {
    const text = this.#tokenizer.text(token);
    if (text !== null && this.#decoder === null) return this.#tokenizer.isSpecial(token) ? "" : text;
    if (this.#tokenizer.isSpecial(token)) return "";
    this.#decoder ??= new StringDecoder("utf8");
    return this.#decoder.write(Buffer.from(this.#tokenizer.bytes(token)));
  }
}

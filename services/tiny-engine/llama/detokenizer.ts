// Turns tokens back into text as they come. A character may be spread over several tokens: what isn't whole yet is held
// back until it is, and broken bytes become U+FFFD, as vLLM shows them.
import type { Bpe } from "./bpe.ts";

export interface Detokenizer {
  /** Text that this token completes. May be empty. */
  push(token: number): string;
  /** What was held back, once no token follows. */
  end(): string;
}

export function createDetokenizer(bpe: Pick<Bpe, "bytes" | "isSpecial">): Detokenizer {
  const decoder = new TextDecoder("utf-8", { ignoreBOM: true });
  return {
    push: (token) => (bpe.isSpecial(token) ? "" : decoder.decode(bpe.bytes(token), { stream: true })),
    end: () => decoder.decode(),
  };
}

// The chat template of the sim's model: "role: content" and a turn end, the assistant's turn left open.
import type { Message } from "../message.ts";
import { tokenizer } from "./tokenizer.ts";

/** @param continueFinal The last message is the beginning of the answer: its turn is not closed. */
export function chatTokens(messages: readonly Message[], openTurn: boolean, continueFinal: boolean): number[] {
  const tokens = [tokenizer.bos];
  messages.forEach(({ role, content }, index) => {
    tokens.push(...tokenizer.encode(`${role}: ${content}`));
    if (!continueFinal || index < messages.length - 1) tokens.push(tokenizer.turnEnd, ...tokenizer.encode("\n"));
  });
  if (openTurn && !continueFinal) tokens.push(...tokenizer.encode("assistant: "));
  return tokens;
}

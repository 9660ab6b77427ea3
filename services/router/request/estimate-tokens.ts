// How long a prompt is before any engine has counted: only to compare loads, and to tell surely short prompts.
import type { RelayRequest } from "./request.ts";

/** Bytes of a body for each prompt token, roughly. English text has about so many. */
const BYTES_PER_TOKEN = 4;

/** Tokens of one prompt of the request, by the size of the body. */
export function estimateTokens({ body, prompts }: Pick<RelayRequest, "body" | "prompts">): number {
  return Math.ceil(body.length / BYTES_PER_TOKEN / prompts);
}

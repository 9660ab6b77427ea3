// Estimates a prompt's length before any engine has counted it, only to compare loads and to recognize short prompts.
import type { RelayRequest } from "./request.ts";

/** Bytes of a body per prompt token, about as in English text. */
const BYTES_PER_TOKEN = 4;

/** Estimates the tokens of one prompt of the request from the size of the body. */
export function estimateTokens({ body, prompts }: Pick<RelayRequest, "body" | "prompts">): number {
  return Math.ceil(body.length / BYTES_PER_TOKEN / prompts);
}

// The clients' API key, refused in OpenAI's words.
import { createGate } from "../../rpc/access.ts";

const REFUSALS = {
  missing: () => "You didn't provide an API key. Send it in a header: `Authorization: Bearer YOUR_KEY`.",
  wrong: () => "Incorrect API key provided.",
};

/**
 * A check of the `authorization` header, which throws `unauthenticated`.
 *
 * @param apiKey "" lets everyone in.
 */
export function authorizer(apiKey: string): (authorization: string | undefined) => void {
  const gate = createGate({ apiKey }, REFUSALS);
  return (authorization) => {
    const refusal = gate("key", authorization);
    if (refusal !== undefined) throw refusal;
  };
}

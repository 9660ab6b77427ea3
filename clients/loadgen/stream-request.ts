// One streamed completion, as the load generator counts it.
import { timedRequest, type Target } from "../common/timed-request.ts";
import { timePerOutputToken } from "./statistics.ts";

export type StreamResult = Awaited<ReturnType<typeof streamRequest>>;

/** Never rejects: a failed request is a result too. */
export async function streamRequest(target: Target, body: string) {
  const answer = await timedRequest({ path: "/v1/completions", body, stream: true }, target);
  const { sentMs, firstMs = Number.NaN, lastMs = Number.NaN, chunks, status } = answer;
  const [ttftMs, endToEndMs] = [firstMs - sentMs, lastMs - sentMs];
  const completed = answer.ending === "completed";
  // An answer without usage is counted by its events.
  const tokens = Number.isNaN(answer.tokens) ? chunks : answer.tokens;
  return {
    ...answer,
    tokens,
    completed,
    ttftMs,
    tpotMs: timePerOutputToken(endToEndMs, ttftMs, tokens),
    endToEndMs,
    /** Why the request did not complete. */
    error: completed ? undefined : `${[0, 200].includes(status) ? "" : `status ${status}: `}${answer.message}`,
  };
}

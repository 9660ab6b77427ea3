// One streamed completion, as the load generator counts it.
import { timedRequest, type Target } from "../common/timed-request.ts";
import { timePerOutputToken, type Timed } from "./statistics.ts";

/** One request and its result. */
export interface StreamResult extends Timed {
  readonly text: string;
  /** SSE events that carried text. */
  readonly chunks: number;
  /** Completion tokens by the answer's usage; NaN if it has none. */
  readonly completionTokens: number;
  /** Milliseconds between two events that carried text. */
  readonly gapsMs: readonly number[];
  readonly endToEndMs: number;
  /** Why the request did not complete. */
  readonly error: string | undefined;
}

/** Never rejects: a failed request is a result too. */
export async function streamRequest(target: Target, path: string, body: string): Promise<StreamResult> {
  const answer = await timedRequest({ path, body, stream: true }, target);
  const { sentMs, firstMs = Number.NaN, lastMs = Number.NaN, text, chunks, tokens, gapsMs, status } = answer;
  const [ttftMs, endToEndMs] = [firstMs - sentMs, lastMs - sentMs];
  const completed = answer.ending === "completed";
  return {
    completed,
    ttftMs,
    tpotMs: timePerOutputToken(endToEndMs, ttftMs, Number.isNaN(tokens) ? chunks : tokens),
    text,
    chunks,
    completionTokens: tokens,
    gapsMs,
    endToEndMs,
    error: completed ? undefined : `${[0, 200].includes(status) ? "" : `status ${status}: `}${answer.message}`,
  };
}

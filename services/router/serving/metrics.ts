// What is counted of requests at the router's door. Labels are bounded sets.
import type { Histogram, Metrics } from "../../common/metrics.ts";
import { REFUSALS, type Admission, type Refusal } from "../admission/admission.ts";
import { FALLBACKS_HELP } from "../request/metrics.ts";
import type { ReceiptDraft } from "../request/receipt.ts";
import type { Ending } from "../relay/relay.ts";

export type ServingMetrics = ReturnType<typeof createServingMetrics>;

const SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80];

export function createServingMetrics(metrics: Metrics, admission: Pick<Admission, "running" | "waiting">) {
  let open = 0;
  const requests = metrics.counter(
    "tandem_requests_total",
    "Requests that ended, by outcome and code of the failure.",
    ["path", "outcome", "code"],
  );
  const refusals = metrics.counter("tandem_refusals_total", "Requests that were not admitted, by reason.", ["because"]);
  // There from the start, so that the first of a kind is a rise too.
  for (const because of REFUSALS) refusals.inc({ because }, 0);
  const fallbacks = metrics.counter("tandem_fallbacks_total", FALLBACKS_HELP, ["reason"]);
  const seconds = (name: string, help: string, labels?: readonly string[]): Histogram =>
    metrics.histogram(name, help, SECONDS, labels);
  const ttft = seconds("tandem_time_to_first_token_seconds", "Body read to first byte of the answer written.", [
    "path",
  ]);
  const duration = seconds("tandem_request_duration_seconds", "Body read to the end of the answer.", ["path"]);
  const queue = seconds("tandem_request_queue_seconds", "Time in the waiting queue.");
  const promptTokens = metrics.counter("tandem_prompt_tokens_total", "Prompt tokens of completed requests.");
  const outputTokens = metrics.counter("tandem_generation_tokens_total", "Tokens generated for completed requests.");
  const gauge = (name: string, help: string, value: () => number): void =>
    void metrics.gauge(name, help, [], (one) => one.set(value()));
  gauge("tandem_legs_running", "Legs of requests that were admitted and run.", () => admission.running);
  gauge("tandem_requests_waiting", "Requests in the waiting queue.", () => admission.waiting);
  gauge("tandem_requests_running", "Requests that have not ended, without those that wait in the queue.", () =>
    Math.max(0, open - admission.waiting),
  );
  return {
    opened(): void {
      open += 1;
    },
    closed(draft: ReceiptDraft, ending: Ending | undefined): void {
      open -= 1;
      requests.inc({ path: draft.path, outcome: draft.outcome, code: draft.errorCode });
      queue.observe(draft.queueMs / 1000);
      if (draft.ttftMs > 0) ttft.observe({ path: draft.path }, draft.ttftMs / 1000);
      if (ending === undefined) return;
      duration.observe({ path: draft.path }, draft.totalMs / 1000);
      promptTokens.inc(ending.promptTokens);
      outputTokens.inc(ending.completionTokens);
    },
    /** Counts a request that was refused before it could be opened: a bad key, a malformed body. */
    refused(path: string, code: string): void {
      requests.inc({ path, outcome: "refused", code });
    },
    /** Counts a request that was not admitted, beside `refused` or `closed`, which say how it ended. */
    notAdmitted: (because: Refusal): void => refusals.inc({ because }),
    /** Counts a request that was placed though the registry was away, or reported its instances dead. */
    fallback: (reason: "stale-registry" | "stale-view"): void => fallbacks.inc({ reason }),
  };
}

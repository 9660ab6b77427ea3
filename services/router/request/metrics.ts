// What is counted of legs. Once a leg at most; nothing here runs per token. Labels are bounded sets: error codes come
// from the table of failures.
import type { FailureCode } from "../../common/errors.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { LegDraft } from "./receipt.ts";

export type LegEnd = "completed" | "cancelled" | FailureCode;

/**
 * Why something was done otherwise than planned. `pair_avoided`: a pair with an open breaker was passed over.
 * `unpaired`: decode computed the prompt too, because no prefill instance was left. `unpaired_short`: the same for a short prompt, by `unpaired.below_tokens`.
 * `replay`: a stream that broke after its first byte was written again elsewhere.
 */
export type Fallback = "retry" | "replay" | "busy" | "pair_avoided" | "unpaired" | "unpaired_short";

export interface RelayMetrics {
  /** One side of a pair has ended. */
  leg(side: "prefill" | "decode", outcome: LegEnd): void;
  retry(reason: FailureCode): void;
  /** Something was done otherwise than planned. */
  fallback(reason: Fallback): void;
  /** A retry that would have been right was not made. */
  retryRefused(because: "budget" | "strict"): void;
  /** A stream was written again. `exact`: as before, so it went on. `diverged`: otherwise. `failed`: not far enough. */
  replay(outcome: "exact" | "diverged" | "failed"): void;
  /** A pair of legs gave a whole answer. Where it came in one piece, nothing is known of its first token. */
  completed(draft: LegDraft, stream: boolean): void;
  kvBytes(bytes: bigint): void;
  /** From one message with tokens to the next of the same stream. Once a message. */
  interTokenMs(ms: number): void;
}

export const FALLBACKS_HELP = "Fallbacks: what was done in place of the plan, by kind.";

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80];
const TOKEN_SECONDS = [
  0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1,
];

/** @param settling Legs whose request is gone and that are still being brought to their end. */
export function createRelayMetrics(metrics: Metrics, settling: () => number): RelayMetrics {
  const legs = metrics.counter("tandem_legs_total", "Legs that ended, by side and outcome.", ["leg", "outcome"]);
  const retries = metrics.counter("tandem_retries_total", "Pairs of legs that were tried again, by the failure.", [
    "reason",
  ]);
  const fallbacks = metrics.counter("tandem_fallbacks_total", FALLBACKS_HELP, ["reason"]);
  const refused = metrics.counter(
    "tandem_retries_refused_total",
    "Retries that were not made for want of budget, or because the request was strict.",
    ["because"],
  );
  const replays = metrics.counter(
    "tandem_replays_total",
    "Streams that broke after their first byte and were written again on another pair, by how that ended.",
    ["outcome"],
  );
  const kvBytes = metrics.counter(
    "tandem_kv_transfer_bytes_total",
    "KV cache bytes handed from prefill to decode, as far as engines tell.",
  );
  const reserve = metrics.histogram("tandem_reserve_seconds", "Until a decode slot was reserved.", SECONDS);
  const prefill = metrics.histogram("tandem_prefill_seconds", "Until prefill had answered.", SECONDS);
  const transfer = metrics.histogram(
    "tandem_kv_transfer_seconds",
    "Prefill's answer to the first token: KV transfer and first decode step.",
    SECONDS,
  );
  // vLLM has it as vllm:request_time_per_output_token_seconds.
  const tpot = metrics.histogram(
    "tandem_request_time_per_output_token_seconds",
    "Mean time of a token after the first, one value a leg.",
    TOKEN_SECONDS,
  );
  const itl = metrics.tally(
    "tandem_inter_token_latency_seconds",
    "Between two writes of tokens of one stream, without pauses that a slow client made.",
    TOKEN_SECONDS,
  );
  metrics.gauge("tandem_legs_settling", "Legs whose request is gone and whose KV is being settled.", [], (gauge) =>
    gauge.set(settling()),
  );
  return {
    leg: (leg, outcome) => legs.inc({ leg, outcome }),
    retry: (reason) => retries.inc({ reason }),
    fallback: (reason) => fallbacks.inc({ reason }),
    retryRefused: (because) => refused.inc({ because }),
    replay: (outcome) => replays.inc({ outcome }),
    completed(draft, stream) {
      if (draft.reserveMs > 0) reserve.observe(draft.reserveMs / 1000);
      if (draft.prefillInstanceId !== "") prefill.observe(draft.prefillMs / 1000);
      if (!stream) return;
      transfer.observe(draft.transferMs / 1000);
      if (draft.completionTokens > 1) tpot.observe(draft.decodeMs / 1000 / (draft.completionTokens - 1));
    },
    kvBytes: (bytes) => kvBytes.inc(Number(bytes)),
    interTokenMs: (ms) => itl.observe(ms / 1000),
  };
}

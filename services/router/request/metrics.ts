// Metrics of legs. Everything but interTokenMs and kvBytes runs a few times per leg at most. Labels are bounded sets:
// error codes come from the table of failures.
import type { FailureCode } from "../../common/errors.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { LegDraft } from "./receipt.ts";

export type LegEnd = "completed" | "cancelled" | FailureCode;

/**
 * The kind of a fallback. `last_resort`: an instance or pair was used although its breaker is open, because too few
 * others are left. `pair_avoided`: a pair with an open breaker was passed over. `unpaired`: decode computed the
 * prompt too, because no prefill instance was left. `unpaired_short`: the same for a prompt below
 * `unpaired.below_tokens`. `replay`: a stream that broke after its first byte was written again elsewhere. `hedge`: the
 * first byte was late, so another pair was asked as well.
 */
export type Fallback =
  | "retry"
  | "replay"
  | "hedge"
  | "busy"
  | "last_resort"
  | "pair_avoided"
  | "unpaired"
  | "unpaired_short";

export const FALLBACKS_HELP = "Fallbacks used in place of the plan, by kind.";

const SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80];
const TOKEN_SECONDS = [
  0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.025, 0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.5, 1,
];

/** @param settling Counts the legs whose request is gone and that are still settling. */
export function createRelayMetrics(metrics: Metrics, settling: () => number) {
  const legs = metrics.counter("tandem_legs_total", "Legs that ended, by side and outcome.", ["leg", "outcome"]);
  const retries = metrics.counter("tandem_retries_total", "Legs that were retried, by the failure.", ["reason"]);
  const fallbacks = metrics.counter("tandem_fallbacks_total", FALLBACKS_HELP, ["reason"]);
  const refused = metrics.counter(
    "tandem_retries_refused_total",
    "Retries that were not made because the budget was used up or the request was strict.",
    ["because"],
  );
  const replays = metrics.counter(
    "tandem_replays_total",
    "Replays: streams that broke after their first byte and were written again on another pair, by outcome.",
    ["outcome"],
  );
  const hedges = metrics.counter(
    "tandem_hedges_total",
    "Second attempts beside one whose first byte was late, by outcome.",
    ["outcome"],
  );
  const hedgesRefused = metrics.counter(
    "tandem_hedges_refused_total",
    "Late attempts without a second one, by reason.",
    ["because"],
  );
  const kvBytes = metrics.counter(
    "tandem_kv_transfer_bytes_total",
    "KV cache bytes transferred from prefill to decode, as far as engines report them.",
  );
  const reserve = metrics.histogram("tandem_reserve_seconds", "Time to reserve a decode slot.", SECONDS);
  const prefill = metrics.histogram("tandem_prefill_seconds", "Time until prefill answered.", SECONDS);
  const transfer = metrics.histogram(
    "tandem_kv_transfer_seconds",
    "Time from prefill's answer to the first token: KV transfer and first decode step.",
    SECONDS,
  );
  // vLLM's name for this metric is vllm:request_time_per_output_token_seconds.
  const tpot = metrics.histogram(
    "tandem_request_time_per_output_token_seconds",
    "Mean time per token after the first, one value per leg.",
    TOKEN_SECONDS,
  );
  const itl = metrics.tally(
    "tandem_inter_token_latency_seconds",
    "Time between two writes of tokens of one stream, without pauses caused by a slow client.",
    TOKEN_SECONDS,
  );
  metrics.gauge("tandem_legs_settling", "Legs whose request is gone and whose KV is being settled.", [], (gauge) =>
    gauge.set(settling()),
  );
  return {
    /** Counts one side of a leg that has ended. */
    leg: (leg: "prefill" | "decode", outcome: LegEnd) => legs.inc({ leg, outcome }),
    retry: (reason: FailureCode) => retries.inc({ reason }),
    fallback: (reason: Fallback) => fallbacks.inc({ reason }),
    /** Counts a retry that the failure allowed, but the budget or a strict request forbade. */
    retryRefused: (because: "budget" | "strict") => refused.inc({ because }),
    /** `exact`: the same bytes, so the stream went on. `diverged`: other bytes. `failed`: it did not get that far. */
    replay: (outcome: "exact" | "diverged" | "failed") => replays.inc({ outcome }),
    /** Counts a leg that gave a whole answer. The time of a non-streaming answer's first token is unknown. */
    completed(draft: LegDraft, stream: boolean): void {
      if (draft.reserveMs > 0) reserve.observe(draft.reserveMs / 1000);
      if (draft.prefillInstanceId !== "") prefill.observe(draft.prefillMs / 1000);
      if (!stream) return;
      transfer.observe(draft.transferMs / 1000);
      if (draft.completionTokens > 1) tpot.observe(draft.decodeMs / 1000 / (draft.completionTokens - 1));
    },
    /** `won`: the second attempt answered. `lost`: the first one did. `failed`: the second failed before that. */
    hedge: (outcome: "won" | "lost" | "failed" | "cancelled") => hedges.inc({ outcome }),
    hedgeRefused: (because: "budget" | "overload" | "no_pair") => hedgesRefused.inc({ because }),
    kvBytes: (bytes: bigint) => kvBytes.inc(Number(bytes)),
    /** Observes the time between two messages with tokens of the same stream. Called once per message. */
    interTokenMs: (ms: number) => itl.observe(ms / 1000),
  };
}

export type RelayMetrics = ReturnType<typeof createRelayMetrics>;

// The relay's limits, as the settings have them.
import type { RouterConfig } from "./config.ts";
import type { RelayLimits } from "./relay/relay.ts";

export function relayLimits(config: RouterConfig): RelayLimits {
  return {
    retryLimit: config["retry.limit"],
    replayMode: config["replay.mode"],
    replayTimeoutMs: config["replay.timeout_ms"],
    retryRatio: config["retry.ratio"],
    retryPerS: config["retry.per_s"],
    reserveTimeoutMs: config["reserve.timeout_ms"],
    prefillTimeoutMs: config["prefill.timeout_ms"],
    prefillFloorMs: config["prefill.floor_ms"],
    prefillSlack: config["prefill.slack"],
    transferTimeoutMs: config["transfer.timeout_ms"],
    firstTokenTimeoutMs: config["first_token.timeout_ms"],
    answerFloorMs: config["answer.floor_ms"],
    answerSlack: config["answer.slack"],
    stallMs: config.stall_ms,
    queueTimeoutMs: config["queue.timeout_ms"],
    legsLimit: config["legs.limit"],
    directTokens: config["fallback.direct_tokens"],
  };
}

// PrefillService: one leg is one request to the engine, whose one token is dropped and whose KV cache is transferred.
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  Outcome,
  PrefillService,
  type PrefillRequest,
  type PrefillResponseSchema,
} from "#gen/tandem/prefill/v1/prefill_pb.js";
import { asServiceError, ServiceError } from "../common/errors.ts";
import type { LiveEngine } from "../engine/engine.ts";
import { engineFailure, refusalOf } from "../engine/engine-error.ts";
import { neverReached, type EngineAnswerBody } from "../engine/http.ts";
import type { InstanceParts, RoleService } from "../instance/instance.ts";
import { checkKvAddress, checkLeg, estimatePromptTokens } from "../instance/leg-request.ts";
import type { EngineRequest, LegSpec } from "../kv/connector.ts";
import { defineService, type CallContext } from "../rpc/service.ts";
import { watchPartners } from "./partner-watch.ts";
import { createOutcomes, type PrefillOutcome } from "./outcomes.ts";

type Answer = MessageInitShape<typeof PrefillResponseSchema>;

/** A prefill engine answers with one token and at most some KV parameters. */
const ANSWER_LIMIT_BYTES = 16 * 1024 * 1024;

export interface OutcomeLimits {
  readonly keepMs: number;
  readonly limit: number;
}

export function prefillService(parts: InstanceParts, limits: OutcomeLimits): RoleService {
  const { connector, board, log, clock } = parts;
  const { traits } = connector;
  const outcomes = createOutcomes({ ...limits, nowMs: clock.nowMs });
  const running = new Set<AbortController>();
  const partners = !traits.wedgedByPartner
    ? undefined
    : watchPartners({
        clock,
        lost(address) {
          const engine = parts.supervisor.live;
          if (engine === undefined) return;
          log.error(
            "a decode engine died while this prefill engine was sending to it, which wedges the prefill engine",
            { decodeKvAddress: address },
          );
          const reason = "a decode engine died while receiving KV from this engine";
          if (!parts.supervisor.restart(engine, reason, { atOnce: true }))
            log.error("the attached engine waits for a decode engine that is gone; restart it");
        },
      });

  async function prefill(request: PrefillRequest, context: CallContext): Promise<Answer> {
    const arrivedMs = clock.nowMs();
    const leg = checkLeg(request);
    checkKvAddress("decode_kv_address", request.decodeKvAddress, traits.decodeFirst);
    board.admit();
    const engine = parts.supervisor.live;
    if (engine === undefined) throw new ServiceError("instance_unavailable", "The instance's engine is not running.");
    // Under an id that the decode engine doesn't look for, the KV would never be claimed, and vLLM would wait forever.
    if (traits.pairedId && request.prefillKvAddress !== "" && request.prefillKvAddress !== engine.kvAddress) {
      throw new ServiceError("instance_unavailable", "The instance's engine was restarted.");
    }
    const legContext: LegSpec = {
      ...leg,
      legId: request.legId,
      prefillKvAddress: traits.pairedId ? engine.kvAddress : "",
      decodeKvAddress: request.decodeKvAddress,
      promptIndex: request.promptIndex,
      sampleIndex: 0,
    };
    const engineRequest = buildRequest(legContext);
    // From here on the id counts as used, however the leg ends.
    if (!outcomes.begin(request.legId)) {
      throw new ServiceError("leg_id_reused", "The leg id was used before. Retry with a fresh one.");
    }
    const queuedTokens = estimatePromptTokens(leg.body.length);
    board.count({ running: 1, queuedTokens });
    const leaving = new AbortController();
    running.add(leaving);
    const partnerEnded = partners?.began(request.decodeKvAddress);
    const work = run(engine, legContext, engineRequest, leaving.signal, arrivedMs).finally(() => {
      partnerEnded?.();
      running.delete(leaving);
      board.count({ running: -1, queuedTokens: -queuedTokens });
    });
    return cancellable(work, context.signal, leaving);
  }

  function buildRequest(context: LegSpec): EngineRequest {
    try {
      return connector.prefillRequest(context);
    } catch (error) {
      if (error instanceof RangeError)
        throw new ServiceError("invalid_request", `prompt_index: there is no ${error.message}.`);
      throw error;
    }
  }

  // The engine's run and the caller's answer part here: a caller that leaves does not end a leg that can't be ended,
  // and the leg's outcome is kept for the decode instance to ask for.
  async function cancellable(work: Promise<Answer>, gone: AbortSignal, leaving: AbortController): Promise<Answer> {
    const cancelled = new Promise<never>((_, reject) => {
      const leave = (): void => {
        if (traits.prefillCancellable) leaving.abort(new ServiceError("cancelled", "The caller left."));
        reject(asServiceError(gone.reason));
      };
      if (gone.aborted) leave();
      else gone.addEventListener("abort", leave, { once: true });
    });
    cancelled.catch(() => {});
    work.catch(() => {});
    return Promise.race([work, cancelled]);
  }

  async function run(
    engine: LiveEngine,
    context: LegSpec,
    request: EngineRequest,
    leaving: AbortSignal,
    arrivedMs: number,
  ): Promise<Answer> {
    const finish = (outcome: Outcome, ticket = ""): PrefillOutcome => {
      const ended: PrefillOutcome = { outcome, ticket };
      outcomes.end(context.legId, ended);
      log.debug("prefill leg ended", {
        legId: context.legId,
        outcome: Outcome[outcome],
        ms: clock.nowMs() - arrivedMs,
      });
      return ended;
    };
    // With a lease nothing is pushed: any KV that was kept frees itself and needs no settling.
    const unsure = traits.abandoned === "lease" ? Outcome.NOTHING_SENT : Outcome.UNKNOWN;
    let answer: EngineAnswerBody;
    try {
      answer = await engine.http.fetch(
        { method: "POST", ...request, repeatable: !traits.pairedId },
        { limitBytes: ANSWER_LIMIT_BYTES, signal: leaving },
      );
    } catch (error) {
      finish(neverReached(error) ? Outcome.NOTHING_SENT : unsure);
      if (error instanceof ServiceError) throw error;
      parts.supervisor.suspect(engine);
      if (neverReached(error)) {
        throw new ServiceError("instance_unavailable", "The instance's engine is gone.", { cause: error });
      }
      throw engineFailure("prefill", error as Error);
    }
    if (answer.status !== 200) {
      const secrets = [
        request.headers["x-request-id"] ?? "",
        context.legId,
        context.prefillKvAddress,
        context.decodeKvAddress,
      ];
      const refusal = refusalOf(answer.status, answer.body, { leg: "prefill", internal: secrets });
      // A refused request never ran; one that failed may have pushed some layers.
      finish(refusal.code === "engine_failed" || refusal.code === "kv_transfer_failed" ? unsure : Outcome.NOTHING_SENT);
      if (refusal.code === "engine_failed") parts.supervisor.suspect(engine);
      throw refusal;
    }
    let parsed: EngineAnswer;
    let ticket: string;
    try {
      parsed = JSON.parse(answer.body.toString("utf8")) as EngineAnswer;
      ticket = connector.ticket(parsed);
    } catch (error) {
      finish(unsure);
      throw error instanceof ServiceError ? error : engineFailure("prefill", error as Error);
    }
    finish(Outcome.HANDED_OVER, ticket);
    const cached = parsed.usage?.prompt_tokens_details?.cached_tokens;
    const firstLogprob = firstLogprobOf(parsed);
    const kvBytes = parsed.kv_transfer_params?.kv_bytes;
    return {
      ticket,
      promptTokens: parsed.usage?.prompt_tokens ?? 0,
      ...(typeof cached === "number" ? { cachedTokens: cached } : {}),
      ...(typeof kvBytes === "number" && Number.isSafeInteger(kvBytes) ? { kvBytes: BigInt(kvBytes) } : {}),
      ...(firstLogprob === undefined ? {} : { firstLogprob }),
      engineMs: clock.nowMs() - arrivedMs,
    };
  }

  return {
    rpc: defineService(
      PrefillService,
      {
        prefill,
        async getOutcome({ legId }, { signal }) {
          const ended = outcomes.of(legId);
          if (ended === undefined) throw new ServiceError("not_found", "This instance doesn't know the leg.");
          return Promise.race([ended, rejectedWhen(signal)]);
        },
      },
      { access: "token" },
    ),
    abortLegs() {
      const error = new ServiceError("instance_unavailable", "The instance is stopping.");
      for (const leaving of running) leaving.abort(error);
    },
  };
}

/** The part of vLLM's answer that is read. Only Tandem's own engines report `kv_bytes`. */
interface EngineAnswer {
  readonly kv_transfer_params?: { readonly kv_bytes?: unknown } | null;
  readonly usage?: {
    readonly prompt_tokens?: number;
    readonly prompt_tokens_details?: { readonly cached_tokens?: number } | null;
  };
  readonly choices?: readonly { readonly logprobs?: { readonly token_logprobs?: readonly unknown[] } | null }[];
}

/** The first token's logprob in the answer to a request that asked for logprobs, as a probe does. */
function firstLogprobOf(answer: EngineAnswer): number | undefined {
  const first = answer.choices?.[0]?.logprobs?.token_logprobs?.[0];
  return typeof first === "number" ? first : undefined;
}

function rejectedWhen(signal: AbortSignal): Promise<never> {
  return new Promise((_, reject) => {
    if (signal.aborted) reject(asServiceError(signal.reason));
    else signal.addEventListener("abort", () => reject(asServiceError(signal.reason)), { once: true });
  });
}

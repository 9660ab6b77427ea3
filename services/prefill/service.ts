// PrefillService: one leg is one request to the engine, whose one token is dropped and whose KV cache is transferred.
import type { MessageInitShape } from "@bufbuild/protobuf";
import {
  Outcome,
  PrefillService,
  type PrefillRequest,
  type PrefillResponseSchema,
} from "#gen/tandem/prefill/v1/prefill_pb.js";
import { asServiceError, ServiceError } from "../common/errors.ts";
import { onceAborted } from "../common/lifecycle.ts";
import type { LiveEngine } from "../engine/engine.ts";
import { engineFailure, refusalOf } from "../engine/engine-error.ts";
import { neverReached } from "../engine/http.ts";
import type { InstanceParts, RoleService } from "../instance/instance.ts";
import { admitLeg, estimatePromptTokens } from "../instance/leg-request.ts";
import type { EngineRequest, LegSpec } from "../kv/connector.ts";
import { defineService, type CallContext } from "../rpc/service.ts";
import type { PrefillConfig } from "./config.ts";
import { Outcomes, type PrefillOutcome } from "./outcomes.ts";
import { watchPartners } from "./partner-watch.ts";

type Answer = MessageInitShape<typeof PrefillResponseSchema>;
type LegEnd = PrefillOutcome & ({ readonly answer: Answer } | { readonly error: ServiceError });

/** A prefill engine answers with one token and at most some KV parameters. */
const ANSWER_LIMIT_BYTES = 16 * 1024 * 1024;

export function prefillService(parts: InstanceParts, limits: PrefillConfig["outcomes"]): RoleService {
  const { connector, status, log, clock } = parts;
  const { traits } = connector;
  const outcomes = new Outcomes(limits, clock);
  const running = new Set<AbortController>();
  const legBegan = traits.wedgedByPartner ? watchPartners({ clock, lost: partnerLost }) : undefined;

  function partnerLost(address: string): void {
    const { supervisor } = parts;
    if (supervisor.live === undefined) return;
    log.error("a decode engine died while this prefill engine was sending to it, which wedges the prefill engine", {
      decodeKvAddress: address,
    });
    const why = "a decode engine died while receiving KV from this engine";
    if (!supervisor.restart(supervisor.live, why, { atOnce: true }))
      log.error("the attached engine waits for a decode engine that is gone; restart it");
  }

  async function prefill(request: PrefillRequest, { signal: gone }: CallContext): Promise<Answer> {
    const { legId, decodeKvAddress } = request;
    const { engine, spec } = admitLeg(parts, "prefill", request, 0);
    const engineRequest = connector.prefillRequest(spec);
    if (outcomes.has(legId)) {
      throw new ServiceError("leg_id_reused", "The leg id was used before. Retry with a fresh one.");
    }
    const queuedTokens = estimatePromptTokens(spec);
    status.count({ running: 1, queuedTokens });
    const leaving = new AbortController();
    running.add(leaving);
    const legEnded = legBegan?.(decodeKvAddress);
    const work = run(engine, spec, engineRequest, leaving.signal).finally(() => {
      legEnded?.();
      running.delete(leaving);
      status.count({ running: -1, queuedTokens: -queuedTokens });
    });
    // From here on the id counts as used, however the leg ends.
    outcomes.add(legId, work);
    // The engine's run and the caller's answer part here: a caller that leaves does not end a leg that can't be ended,
    // and the leg's outcome is kept for the decode instance to ask for.
    const ended = await Promise.race([work, onceAborted(gone)]);
    if (ended === undefined) {
      if (traits.prefillCancellable) leaving.abort(new ServiceError("cancelled", "The caller left."));
      throw asServiceError(gone.reason);
    }
    if ("error" in ended) throw ended.error;
    return ended.answer;
  }

  /** Never rejects. */
  async function run(engine: LiveEngine, spec: LegSpec, request: EngineRequest, leaving: AbortSignal): Promise<LegEnd> {
    const startedMs = clock.nowMs();
    const { legId, prefillKvAddress, decodeKvAddress } = spec;
    // With a lease nothing is pushed: any KV that was kept frees itself and needs no settling.
    let outcome = traits.abandoned === "lease" ? Outcome.NOTHING_SENT : Outcome.UNKNOWN;
    try {
      const answered = await engine.http
        .fetch(
          { method: "POST", ...request, repeatable: !traits.pairedId },
          { limitBytes: ANSWER_LIMIT_BYTES, signal: leaving },
        )
        .catch((cause: Error) => {
          if (cause instanceof ServiceError) throw cause;
          parts.supervisor.suspect(engine);
          if (!neverReached(cause)) throw engineFailure("prefill", cause);
          outcome = Outcome.NOTHING_SENT;
          throw new ServiceError("instance_unavailable", "The instance's engine is gone.", { cause });
        });
      if (answered.status !== 200) {
        const internal = [request.headers["x-request-id"] ?? "", legId, prefillKvAddress, decodeKvAddress];
        const refusal = refusalOf(answered.status, answered.body, { leg: "prefill", internal });
        if (refusal.code === "engine_failed") parts.supervisor.suspect(engine);
        // A refused request never ran; one that failed may have pushed some layers.
        else if (refusal.code !== "kv_transfer_failed") outcome = Outcome.NOTHING_SENT;
        throw refusal;
      }
      const parsed = JSON.parse(answered.body.toString("utf8")) as EngineAnswer;
      const ticket = connector.ticket(parsed);
      const answer = { ticket, ...figuresOf(parsed), engineMs: clock.nowMs() - startedMs };
      outcome = Outcome.SENT;
      return { outcome, ticket, answer };
    } catch (error) {
      return {
        outcome,
        ticket: "",
        error: error instanceof ServiceError ? error : engineFailure("prefill", error as Error),
      };
    } finally {
      log.debug("prefill leg ended", { legId, outcome: Outcome[outcome], ms: clock.nowMs() - startedMs });
    }
  }

  return {
    rpc: defineService(
      PrefillService,
      {
        prefill,
        async getOutcome({ legId }, { signal }) {
          const ended = await Promise.race([outcomes.of(legId), onceAborted(signal)]);
          if (signal.aborted) throw asServiceError(signal.reason);
          if (ended === undefined) throw new ServiceError("not_found", "This instance doesn't know the leg.");
          return ended;
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

function figuresOf({ usage, kv_transfer_params: kv, choices }: EngineAnswer): Answer {
  const cachedTokens = usage?.prompt_tokens_details?.cached_tokens;
  const kvBytes = kv?.kv_bytes;
  // Only in the answer to a request that asked for logprobs, as a probe does.
  const firstLogprob = choices?.[0]?.logprobs?.token_logprobs?.[0];
  return {
    promptTokens: usage?.prompt_tokens ?? 0,
    ...(typeof cachedTokens === "number" ? { cachedTokens } : {}),
    ...(Number.isSafeInteger(kvBytes) ? { kvBytes: BigInt(kvBytes as number) } : {}),
    ...(typeof firstLogprob === "number" ? { firstLogprob } : {}),
  };
}

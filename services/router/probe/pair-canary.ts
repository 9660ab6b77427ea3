// A request of the router's own through one pair, to see whether decode really answers from the KV that prefill sent.
// Prefill writes one token that no client sees, having computed the whole prompt itself: it is the one engine alone that
// decode's first token is compared with. By log probability and not by text: on a GPU numbers differ a little with the
// batch, and ties fall either way. Seen on vLLM 0.23, bfloat16: 0.12 at most where all is well, 0.27 and more where decode
// answers from KV it never loaded. Prompts are random token ids, so that no cache can answer for the transfer.
import { create } from "@bufbuild/protobuf";
import { randomBytes, randomInt } from "node:crypto";
import { DecodeRequestSchema, DecodeService, type DecodeRequest } from "#gen/tandem/decode/v1/decode_pb.js";
import { PrefillService, type PrefillResponse } from "#gen/tandem/prefill/v1/prefill_pb.js";
import { asServiceError } from "../../common/errors.ts";
import { CONNECTORS } from "../../kv/index.ts";
import type { ConnectorName } from "../../kv/connector.ts";
import type { Member } from "../pool/member.ts";

export type CanaryResult =
  | { readonly kind: "right"; readonly worstDelta: number; readonly ms: number }
  /** It came through and can't be judged: the engines tell no log probabilities. */
  | { readonly kind: "through"; readonly ms: number }
  | { readonly kind: "wrong"; readonly worstDelta: number; readonly tolerance: number }
  | { readonly kind: "failed"; readonly message: string };

/** One alone may look right by chance: garbage of a small model is now and then near the truth. */
const PROMPTS = 3;
const PROMPT_TOKENS = 160;
/** Ids that every vocabulary has, above the special ones of most. */
const TOKEN_IDS = [10, 240] as const;
const TOLERANCE = 0.2;
const TOLERANCE_FLOAT32 = 0.01;
const PATH = "/v1/completions";

type PairMember = Pick<Member, "info" | "control">;

/** @param o.timeoutMs For all of it: the first use of a pair sets up its connection, which takes seconds. */
export async function sendPairCanary(
  prefill: PairMember,
  decode: PairMember,
  o: { readonly timeoutMs: number; readonly signal?: AbortSignal },
): Promise<CanaryResult> {
  const startMs = performance.now();
  const deadline = AbortSignal.timeout(o.timeoutMs);
  const signal = o.signal === undefined ? deadline : AbortSignal.any([deadline, o.signal]);
  let worstDelta: number | undefined;
  try {
    for (let count = 0; count < PROMPTS; count++) {
      const delta = await once(prefill, decode, signal);
      if (delta !== undefined) worstDelta = Math.max(worstDelta ?? 0, delta);
    }
  } catch (error) {
    const { code, message } = asServiceError(error);
    return {
      kind: "failed",
      message: deadline.aborted ? `nothing came within ${o.timeoutMs / 1_000} s` : `${message} (${code})`,
    };
  }
  const ms = performance.now() - startMs;
  if (worstDelta === undefined) return { kind: "through", ms };
  const tolerance = decode.info.dtype === "float32" && prefill.info.dtype === "float32" ? TOLERANCE_FLOAT32 : TOLERANCE;
  return worstDelta > tolerance ? { kind: "wrong", worstDelta, tolerance } : { kind: "right", worstDelta, ms };
}

/** How far the two are apart; undefined where one of them doesn't tell. */
async function once(prefill: PairMember, decode: PairMember, signal: AbortSignal): Promise<number | undefined> {
  const { traits } = CONNECTORS[prefill.info.connector as ConnectorName];
  const legId = randomBytes(16).toString("hex");
  const longest = Math.min(
    ...[prefill.info.maxModelLen, decode.info.maxModelLen].filter((length) => length > 0),
    Infinity,
  );
  const prompt = Array.from({ length: Math.max(1, Math.min(PROMPT_TOKENS, Math.floor(longest / 2))) }, () =>
    randomInt(...TOKEN_IDS),
  );
  const body = JSON.stringify({ model: prefill.info.model, prompt, max_tokens: 1, temperature: 0, logprobs: 1 });

  let handed!: (answer: PrefillResponse | undefined) => void;
  const prefilled = new Promise<PrefillResponse | undefined>((resolve) => (handed = resolve));
  async function* steps(): AsyncGenerator<DecodeRequest> {
    const reserve = {
      legId,
      path: PATH,
      body,
      prefillKvAddress: traits.pairedId ? prefill.info.kvAddress : "",
      prefillGrpcAddress: prefill.info.grpcAddress,
      face: { id: `canary-${legId}`, created: 1, choiceIndex: 0 },
    };
    yield create(DecodeRequestSchema, { step: { case: "reserve", value: reserve } });
    const answer = await prefilled;
    if (answer === undefined)
      yield create(DecodeRequestSchema, {
        step: { case: "abandon", value: { reason: "the canary's prefill failed" } },
      });
    else yield create(DecodeRequestSchema, { step: { case: "start", value: { ticket: answer.ticket } } });
  }

  let answer: PrefillResponse | undefined;
  let failed: unknown;
  let text = "";
  try {
    for await (const message of decode.control.client(DecodeService).decode(steps(), { signal })) {
      text += message.events;
      if (message.reserved === undefined || answer !== undefined) continue;
      // Only now: no prefill is paid before decode has a slot for its KV.
      answer = await prefill.control
        .client(PrefillService)
        .prefill({ legId, path: PATH, body, decodeKvAddress: traits.pairedId ? decode.info.kvAddress : "" }, { signal })
        .catch((error: unknown) => void (failed = error));
      handed(answer);
    }
  } catch (error) {
    throw failed ?? error;
  } finally {
    handed(undefined);
  }
  if (failed !== undefined) throw failed;
  const own = answer?.firstLogprob;
  const told = firstLogprobOf(text);
  return own === undefined || told === undefined ? undefined : Math.abs(own - told);
}

function firstLogprobOf(text: string): number | undefined {
  try {
    const parsed = JSON.parse(text) as { choices?: { logprobs?: { token_logprobs?: unknown[] } | null }[] };
    const first = parsed.choices?.[0]?.logprobs?.token_logprobs?.[0];
    return typeof first === "number" ? first : undefined;
  } catch {
    return undefined;
  }
}

/** Why a pair with this result is not used; undefined where it may be. */
export function canaryFault(result: CanaryResult): string | undefined {
  switch (result.kind) {
    case "right":
    case "through":
      return undefined;
    case "wrong":
      return `decode's first token is off by ${result.worstDelta.toFixed(3)} in log probability (${result.tolerance} is noise): it does not answer from the KV it was sent`;
    case "failed":
      return `its canary failed: ${result.message}`;
  }
}

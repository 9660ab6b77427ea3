// InferenceService serves gRPC clients in the same way as the REST API serves HTTP clients.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type GenerateResponseSchema, InferenceService } from "#gen/tandem/inference/v1/inference_pb.js";
import type { Clock, Timer } from "../../common/clock.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import { createStreamReader } from "../../common/openai-stream.ts";
import { defineService, type RpcService } from "../../rpc/service.ts";
import type { AnswerSink, Ending } from "../relay/relay.ts";
import { schedulingOf } from "../serving/scheduling.ts";
import type { Serving } from "../serving/serving.ts";
import type { ServingMetrics } from "../serving/metrics.ts";
import { generateBody } from "./generate-body.ts";

const LABEL = "Generate";

type Piece = MessageInitShape<typeof GenerateResponseSchema>;

export interface InferenceOptions {
  readonly serving: Serving;
  readonly metrics: ServingMetrics;
  /** Bytes that may wait for a slow caller before its decode leg is held back. */
  readonly bufferBytes: number;
  /** A call is given up if its caller takes nothing for this long while its leg is held back. */
  readonly stallMs: number;
  readonly clock: Clock;
}

export function inferenceService(o: InferenceOptions): RpcService {
  return defineService(
    InferenceService,
    {
      async *generate(request, context) {
        let served;
        try {
          const scheduling = schedulingOf((name) => context.header(name));
          served = o.serving.open({
            label: LABEL,
            ...generateBody(request),
            deadlineMs: context.deadlineMs,
            scheduling,
          });
        } catch (error) {
          o.metrics.refused(LABEL, asServiceError(error).code);
          throw error;
        }
        const requestId = served.request.id;
        let bodyBytes = 0;
        let timer: Timer | undefined;
        const onStall = (): void => {
          const error = new ServiceError("cancelled", `The caller took nothing for ${o.stallMs} ms and was given up.`);
          served.abandon(error);
          // Closed at once, because the loop below wakes only when the caller reads again or is gone.
          served.close({ status: error.failure.http, bodyBytes, error });
        };
        const inbox = createInbox(o.bufferBytes, {
          onStart: served.started,
          onFull: () => (timer = o.clock.setTimer(o.stallMs, onStall)),
          onEmpty: () => timer?.cancel(),
        });
        const onGone = (): void => served.abandon(asServiceError(context.signal.reason));
        if (context.signal.aborted) onGone();
        else context.signal.addEventListener("abort", onGone, { once: true });

        let text = "";
        let reason = "stop";
        let cachedTokens: number | undefined;
        const read = createStreamReader({
          onPart(part) {
            text += part.text;
            reason = part.finishReason ?? reason;
            cachedTokens = part.usage?.cachedTokens ?? cachedTokens;
          },
        });
        let outcome: { ending: Ending } | { error: unknown } | undefined;
        served
          .run(inbox.sink)
          .then(
            (ending) => (outcome = { ending }),
            (error: unknown) => (outcome = { error }),
          )
          .finally(inbox.ring);
        let first = true;
        try {
          for (;;) {
            const bytes = inbox.take();
            if (bytes === undefined) {
              if (outcome !== undefined) break;
              await inbox.next();
              continue;
            }
            text = "";
            read(bytes.toString("utf8"));
            if (text === "" && !first) continue;
            bodyBytes += Buffer.byteLength(text);
            yield (first ? { text, requestId } : { text }) satisfies Piece;
            first = false;
          }
          if ("error" in outcome) throw outcome.error;
          yield {
            ...(first ? { requestId } : {}),
            finish: finishOf(reason, cachedTokens, outcome.ending),
          } satisfies Piece;
          served.close({ status: 200, bodyBytes, ending: outcome.ending });
        } catch (error) {
          served.close({ status: asServiceError(error).failure.http, bodyBytes, error });
          throw error;
        } finally {
          // If the caller stopped reading, neither of the two closes above has run.
          timer?.cancel();
          context.signal.removeEventListener("abort", onGone);
          const left = asServiceError(context.signal.reason);
          served.abandon(left);
          served.close({ status: left.failure.http, bodyBytes, error: left });
        }
      },
    },
    { access: "key" },
  );
}

function finishOf(
  reason: string,
  counted: number | undefined,
  { promptTokens, completionTokens, cachedTokens = counted }: Ending,
): MessageInitShape<typeof GenerateResponseSchema>["finish"] {
  return { reason, promptTokens, completionTokens, ...(cachedTokens === undefined ? {} : { cachedTokens }) };
}

interface Inbox {
  readonly sink: AnswerSink;
  take(): Buffer | undefined;
  /** Resolves at the next ring. */
  next(): Promise<void>;
  ring(): void;
}

/** Connects the relay, which pushes, with the generator, which pulls. A slow generator slows the relay down. */
function createInbox(bufferBytes: number, on: { onStart(): void; onFull(): void; onEmpty(): void }): Inbox {
  const waiting: Buffer[] = [];
  let waitingBytes = 0;
  let blocked = false;
  let wake: (() => void) | undefined;
  const ring = (): void => {
    wake?.();
    wake = undefined;
  };
  const sink: AnswerSink = {
    onDrain: undefined,
    start: on.onStart,
    write(bytes) {
      waiting.push(bytes);
      waitingBytes += bytes.length;
      ring();
      if (waitingBytes < bufferBytes) return true;
      if (!blocked) on.onFull();
      blocked = true;
      return false;
    },
  };
  return {
    sink,
    ring,
    take() {
      const bytes = waiting.shift();
      if (bytes === undefined) return undefined;
      waitingBytes -= bytes.length;
      if (blocked && waiting.length === 0) {
        blocked = false;
        on.onEmpty();
        sink.onDrain?.();
      }
      return bytes;
    },
    next: () => new Promise((resolve) => (wake = resolve)),
  };
}

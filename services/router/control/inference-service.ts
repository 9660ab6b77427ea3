// InferenceService serves gRPC clients in the same way as the REST API serves HTTP clients.
import type { MessageInitShape } from "@bufbuild/protobuf";
import { type GenerateResponseSchema, InferenceService } from "#gen/tandem/inference/v1/inference_pb.js";
import type { Clock, Timer } from "../../common/clock.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import { createStreamReader } from "../../common/openai-stream.ts";
import { defineService, type RpcService } from "../../rpc/service.ts";
import type { AnswerSink, Ending } from "../relay/relay.ts";
import { schedulingOf } from "../serving/scheduling.ts";
import type { Served, Serving } from "../serving/serving.ts";
import { generateBody } from "./generate-body.ts";

const LABEL = "Generate";

type Piece = MessageInitShape<typeof GenerateResponseSchema>;

export interface InferenceOptions {
  readonly serving: Serving;
  /** Bytes that may wait for a slow caller before its decode leg is held back. */
  readonly bufferBytes: number;
  /** A call is cancelled if its caller reads nothing for this long while its leg is held back. */
  readonly stallMs: number;
  readonly clock: Clock;
}

export function inferenceService(o: InferenceOptions): RpcService {
  return defineService(
    InferenceService,
    {
      async *generate(request, context) {
        let served: Served;
        try {
          const scheduling = schedulingOf((name) => context.header(name));
          const { deadlineMs } = context;
          served = o.serving.open({ label: LABEL, ...generateBody(request), deadlineMs, scheduling });
        } catch (error) {
          o.serving.metrics.refused(LABEL, asServiceError(error).code);
          throw error;
        }
        const requestId = served.request.id;
        let bodyBytes = 0;
        const giveUp = (error: ServiceError): void => {
          served.abandon(error);
          served.close({ status: error.failure.http, bodyBytes, error });
        };
        // Closed at once, because the loop below wakes only when the caller reads again or is gone.
        using pipe = createPipe(o, served.started, () =>
          giveUp(new ServiceError("cancelled", `The caller read nothing for ${o.stallMs} ms and was disconnected.`)),
        );
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
        const run = served.run(pipe.sink).finally(pipe.end);
        run.catch(() => {}); // Awaited below, after all that was written before the failure.
        let first = true;
        try {
          for (let bytes = await pipe.next(); bytes !== undefined; bytes = await pipe.next()) {
            text = "";
            read(bytes.toString("utf8"));
            if (text === "" && !first) continue;
            bodyBytes += Buffer.byteLength(text);
            yield (first ? { text, requestId } : { text }) satisfies Piece;
            first = false;
          }
          const ending = await run;
          yield { ...(first ? { requestId } : {}), finish: finishOf(reason, cachedTokens, ending) } satisfies Piece;
          served.close({ status: 200, bodyBytes, ending });
        } catch (error) {
          served.close({ status: asServiceError(error).failure.http, bodyBytes, error });
          throw error;
        } finally {
          context.signal.removeEventListener("abort", onGone);
          // If the caller stopped reading, neither of the two closes above has run.
          giveUp(asServiceError(context.signal.reason));
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
): Piece["finish"] {
  return { reason, promptTokens, completionTokens, ...(cachedTokens === undefined ? {} : { cachedTokens }) };
}

interface Pipe extends Disposable {
  readonly sink: AnswerSink;
  /** The next bytes, once they are there; undefined after the last ones. */
  next(): Promise<Buffer | undefined>;
  /** No more bytes will be written. */
  end(): void;
}

/**
 * Connects the relay, which pushes, with the generator, which pulls. A slow generator holds the relay back.
 *
 * @param onStall The generator read nothing for `stallMs` while the relay was held back.
 */
function createPipe({ bufferBytes, stallMs, clock }: InferenceOptions, onStart: () => void, onStall: () => void): Pipe {
  const waiting: Buffer[] = [];
  let waitingBytes = 0;
  let ended = false;
  let wake = (): void => {};
  /** Set while the relay is held back. */
  let stall: Timer | undefined;
  const release = (): void => {
    stall?.cancel();
    stall = undefined;
  };
  const sink: AnswerSink = {
    onDrain: undefined,
    start: onStart,
    write(bytes) {
      waiting.push(bytes);
      waitingBytes += bytes.length;
      wake();
      if (waitingBytes < bufferBytes) return true;
      stall ??= clock.setTimer(stallMs, onStall);
      return false;
    },
  };
  return {
    sink,
    async next() {
      while (waiting.length === 0) {
        if (ended) return undefined;
        await new Promise<void>((resolve) => (wake = resolve));
      }
      const bytes = waiting.shift()!;
      waitingBytes -= bytes.length;
      if (stall !== undefined && waiting.length === 0) {
        release();
        sink.onDrain?.();
      }
      return bytes;
    },
    end() {
      ended = true;
      wake();
    },
    [Symbol.dispose]: release,
  };
}

// A relay that does what the test says, through the real interface.
import { ServiceError } from "../../../../services/common/errors.ts";
import { LegDraft, type ReceiptDraft } from "../../../../services/router/request/receipt.ts";
import type { AnswerSink, Ending, RelayRequest, RunningRelay } from "../../../../services/router/relay/relay.ts";

/** One request as the relay got it. */
export interface RelayRun {
  readonly request: RelayRequest;
  readonly sink: AnswerSink;
  readonly draft: ReceiptDraft;
  readonly gone: AbortSignal;
  /** Notes a leg, as the relay does when it places one. */
  leg(times?: { reserveMs?: number; prefillMs?: number; transferMs?: number }): void;
  write(text: string): boolean;
}

export type Script = (run: RelayRun) => Promise<Ending>;

export interface FakeRelay extends Pick<RunningRelay, "run" | "idle" | "refusal"> {
  readonly runs: readonly RelayRun[];
  /** What the next requests do. */
  script: Script;
}

export const ENDING: Ending = { finishReasons: ["stop"], promptTokens: 5, completionTokens: 2, cachedTokens: 3 };

export const answer: Script = async ({ request, sink, leg, write }) => {
  leg();
  sink.start();
  if (request.stream) {
    write('data: {"choices":[{"index":0,"text":"Hel","delta":{"content":"Hel"}}]}\n\n');
    write('data: {"choices":[{"index":0,"text":"lo","delta":{"content":"lo"},"finish_reason":"stop"}]}\n\n');
  } else write('{"object":"text_completion"}');
  return ENDING;
};

export const untilGone: Script = ({ gone }) =>
  new Promise((_resolve, reject) => {
    gone.addEventListener("abort", () => reject(new ServiceError("cancelled", "The leg was cancelled.")));
  });

export function fakeRelay(script: Script = answer): FakeRelay {
  const runs: RelayRun[] = [];
  const relay: FakeRelay = {
    runs,
    script,
    idle: async () => {},
    refusal: () => undefined,
    run(request, sink, draft, _admitted, gone) {
      const run: RelayRun = {
        request,
        sink,
        draft,
        gone,
        leg({ reserveMs = 1.5, prefillMs = 20, transferMs = 2 } = {}) {
          const leg = new LegDraft(0);
          leg.prefillInstanceId = "p1";
          leg.decodeInstanceId = "d1";
          Object.assign(leg, { reserveMs, prefillMs, transferMs });
          draft.legs.push(leg);
        },
        write: (text) => sink.write(Buffer.from(text)),
      };
      runs.push(run);
      return relay.script(run);
    },
  };
  return relay;
}

// The two hot routes. They read the raw body and write on the bare response: no express.json, no parse and re-print.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Log } from "../../common/log.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { LegPath } from "../../kv/connector.ts";
import { authorizer } from "./authorize.ts";
import type { BodyBudget, BodyShare } from "./body-budget.ts";
import { clientIdOf } from "./client-id.ts";
import type { HostCheck } from "./host-check.ts";
import { readBody } from "./read-body.ts";
import { refuseUnread } from "./refuse-unread.ts";
import { serverTiming } from "./server-timing.ts";
import { ANSWER_HEADERS, REQUEST_HEADERS } from "../serving/headers.ts";
import { schedulingOf } from "../serving/scheduling.ts";
import type { Served, Serving } from "../serving/serving.ts";
import type { ServingMetrics } from "../serving/metrics.ts";
import { streamAnswer, writeError, type Answer } from "./stream-answer.ts";
import { malformedMedia } from "../serving/validation.ts";
import { wholeAnswer } from "./whole-answer.ts";

/** Kinds of fallback that the header names; the receipt has all. */
const DEGRADED_LIMIT = 8;

export interface CompletionsOptions {
  readonly serving: Serving;
  readonly metrics: ServingMetrics;
  readonly log: Log;
  /** "" lets everyone in. */
  readonly apiKey: string;
  readonly checkHost: HostCheck;
  readonly bodyLimitBytes: number;
  readonly bodyBudget: BodyBudget;
  readonly bufferBytes: number;
  readonly stallMs: number;
}

export function completionsHandler(
  path: LegPath,
  o: CompletionsOptions,
): (req: IncomingMessage, res: ServerResponse) => void {
  const authorize = authorizer(o.apiKey);

  /** From the head of the request to its opening. */
  async function receive(req: IncomingMessage, clientId: string | undefined, share: BodyShare): Promise<Served> {
    o.checkHost(req.headers[REQUEST_HEADERS.host.name]);
    authorize(req.headers[REQUEST_HEADERS.authorization.name]);
    checkMedia(req);
    const scheduling = schedulingOf((name) => {
      const value = req.headers[name];
      return Array.isArray(value) ? value[0] : value;
    });
    const body = await readBody(req, o.bodyLimitBytes, share);
    return o.serving.open({ label: path, path, body, clientId, scheduling });
  }

  function refuse(
    req: IncomingMessage,
    res: ServerResponse,
    error: unknown,
    clientId: string | undefined,
    headers: Record<string, string>,
  ): void {
    const { code, param, failure } = asServiceError(error);
    o.metrics.refused(path, code);
    const from = { clientId, client: req.socket.remoteAddress, path };
    if (code === "internal") o.log.error("request failed", { ...from, error });
    else o.log.info("request refused", { ...from, code, status: failure.http, param });
    if (code === "cancelled") res.destroy();
    else if (!req.complete && (code === "body_too_large" || code === "queue_full")) refuseUnread(req, res, error);
    else {
      // What is left of the body is Node's to read and drop before the next request of this connection.
      if (o.serving.draining) headers["connection"] = "close";
      writeError(res, error, headers);
    }
  }

  async function handle(req: IncomingMessage, res: ServerResponse, share: BodyShare): Promise<void> {
    const clientId = clientIdOf(req.headers[REQUEST_HEADERS.requestId.name]);
    let served: Served;
    try {
      served = await receive(req, clientId, share);
    } catch (error) {
      refuse(req, res, error, clientId, clientId === undefined ? {} : { [ANSWER_HEADERS.requestId.name]: clientId });
      return;
    }
    const { draft, request } = served;
    const answerOptions = {
      bufferBytes: o.bufferBytes,
      stallMs: o.stallMs,
      onStart: served.started,
      onStall: () => {
        served.abandon(
          new ServiceError("cancelled", `The client read nothing for ${o.stallMs} ms and was disconnected.`),
        );
      },
      headers: () => {
        const headers: Record<string, string> = {
          [ANSWER_HEADERS.requestId.name]: clientId ?? request.id,
          [ANSWER_HEADERS.timing.name]: serverTiming(draft),
        };
        if (draft.fallbacks.length > 0)
          headers[ANSWER_HEADERS.degraded.name] = [...new Set(draft.fallbacks)].slice(0, DEGRADED_LIMIT).join(", ");
        if (o.serving.draining) headers["connection"] = "close";
        return headers;
      },
    };
    const answer: Answer = request.stream ? streamAnswer(res, answerOptions) : wholeAnswer(res, answerOptions);
    let settled = false;
    const onClose = (): void => {
      if (!settled) served.abandon(new ServiceError("cancelled", "The client left."));
    };
    // An answer that waits behind another one of its connection has no socket yet, and hears nothing of its end.
    const connection = res.socket === null ? req.socket.setMaxListeners(0) : res;
    if (res.closed || req.socket.destroyed) onClose();
    else connection.once("close", onClose);
    try {
      const ending = await served.run(answer.sink);
      settled = true;
      answer.end();
      served.close({ status: 200, bodyBytes: answer.bodyBytes, ending });
    } catch (error) {
      settled = true;
      const status = answer.fail(error);
      served.close({ status, bodyBytes: answer.bodyBytes, error });
    } finally {
      connection.off("close", onClose);
    }
  }

  return (req, res) => {
    const share = o.bodyBudget.open();
    handle(req, res, share)
      .catch((error: unknown) => {
        o.log.error("request failed", { path, error });
        if (res.headersSent) res.destroy();
        else writeError(res, error);
      })
      .finally(share.release);
  };
}

function checkMedia(req: IncomingMessage): void {
  const media = (req.headers[REQUEST_HEADERS.contentType.name] ?? "").split(";", 1)[0]!.trim().toLowerCase();
  if (media !== "application/json") throw malformedMedia("Unsupported Media Type: Only 'application/json' is allowed");
  const encoding = (req.headers[REQUEST_HEADERS.contentEncoding.name] ?? "identity").toLowerCase();
  if (encoding !== "identity") throw malformedMedia("Unsupported Content-Encoding: Send the body uncompressed");
}

// The two hot routes. They read the raw body and write on the bare response: no express.json, no parse and re-print.
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Log } from "../../common/log.ts";
import { asServiceError, ServiceError } from "../../common/errors.ts";
import type { LegPath } from "../../kv/connector.ts";
import type { LegDraft, ReceiptDraft } from "../request/receipt.ts";
import { ANSWER_HEADERS, REQUEST_HEADERS } from "../serving/headers.ts";
import { schedulingOf } from "../serving/scheduling.ts";
import type { Served, Serving } from "../serving/serving.ts";
import { malformedMedia } from "../serving/validation.ts";
import type { RestAccess } from "./access.ts";
import { streamAnswer, wholeAnswer, type AnswerOptions } from "./answer.ts";
import { refuseUnread, writeError } from "./errors.ts";
import { readBody, turnFor, type BodyShare } from "./read-body.ts";

/** Kinds of fallback that the header names; the receipt has all. */
const DEGRADED_LIMIT = 8;

export interface CompletionsOptions extends Pick<AnswerOptions, "bufferBytes" | "stallMs"> {
  readonly serving: Serving;
  readonly access: RestAccess;
  readonly bodyLimitBytes: number;
  /** Opens one body's share of the memory for bodies. */
  openShare(): BodyShare;
  readonly log: Log;
}

export function completionsHandler(
  path: LegPath,
  o: CompletionsOptions,
): (req: IncomingMessage, res: ServerResponse) => void {
  const { serving, access, log } = o;

  /** From the head of the request to its opening. */
  async function receive(req: IncomingMessage, clientId: string | undefined, share: BodyShare): Promise<Served> {
    access.host(req.headers);
    access.key(req.headers);
    checkMedia(req);
    const scheduling = schedulingOf((name) => req.headers[name] as string | undefined); // Only set-cookie is a list.
    const body = await readBody(req, o.bodyLimitBytes, share);
    await turnFor(body, req);
    return serving.open({ label: path, path, body, clientId, scheduling });
  }

  function refuse(req: IncomingMessage, res: ServerResponse, error: unknown, clientId: string | undefined): void {
    const { code, param, failure } = asServiceError(error);
    serving.metrics.refused(path, code);
    const from = { clientId, client: req.socket.remoteAddress, path };
    if (code === "internal") log.error("request failed", { ...from, error });
    else log.info("request refused", { ...from, code, status: failure.http, param });
    if (code === "cancelled") res.destroy();
    else if (!req.complete && (code === "body_too_large" || code === "queue_full")) refuseUnread(req, res, error);
    // What is left of the body is Node's to read and drop before the next request of this connection.
    else writeError(res, error, headersOf(clientId));
  }

  function headersOf(id: string | undefined): Record<string, string> {
    return {
      ...(id === undefined ? {} : { [ANSWER_HEADERS.requestId.name]: id }),
      ...(serving.draining ? { connection: "close" } : {}),
    };
  }

  async function handle(req: IncomingMessage, res: ServerResponse, share: BodyShare): Promise<void> {
    const clientId = clientIdOf(req.headers[REQUEST_HEADERS.requestId.name]);
    let served: Served;
    try {
      served = await receive(req, clientId, share);
    } catch (error) {
      return refuse(req, res, error, clientId);
    }
    const { draft, request } = served;
    const answer = (request.stream ? streamAnswer : wholeAnswer)(res, {
      bufferBytes: o.bufferBytes,
      stallMs: o.stallMs,
      onStart: served.started,
      onStall() {
        const reason = `The client read next to nothing for ${o.stallMs} ms and was disconnected.`;
        served.abandon(new ServiceError("cancelled", reason));
      },
      headers() {
        const degraded = [...new Set(draft.fallbacks)].slice(0, DEGRADED_LIMIT).join(", ");
        return {
          ...headersOf(clientId ?? request.id),
          [ANSWER_HEADERS.timing.name]: serverTiming(draft),
          ...(degraded === "" ? {} : { [ANSWER_HEADERS.degraded.name]: degraded }),
        };
      },
    });
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
    const share = o.openShare();
    handle(req, res, share)
      .catch((error: unknown) => {
        log.error("request failed", { path, error });
        if (res.headersSent) res.destroy();
        else writeError(res, error);
      })
      .finally(share.release);
  };
}

/**
 * The id that a client gives its request, if it is a harmless token. It is echoed and kept for the receipt, and goes no
 * further: vLLM would parse KV addresses out of it.
 */
function clientIdOf(header: string | string[] | undefined): string | undefined {
  if (typeof header !== "string" || header.includes("___")) return undefined;
  return /^[A-Za-z0-9._-]{1,128}$/.test(header) ? header : undefined;
}

function checkMedia(req: IncomingMessage): void {
  const media = (req.headers[REQUEST_HEADERS.contentType.name] ?? "").split(";", 1)[0]!.trim().toLowerCase();
  if (media !== "application/json") throw malformedMedia("Unsupported Media Type: Only 'application/json' is allowed");
  const encoding = (req.headers[REQUEST_HEADERS.contentEncoding.name] ?? "identity").toLowerCase();
  if (encoding !== "identity") throw malformedMedia("Unsupported Content-Encoding: Send the body uncompressed");
}

/**
 * Where the time of a request went, as far as it is known, for `curl -i` and a browser's network panel (W3C Server
 * Timing). Milliseconds; of several legs, the one that took longest in each part.
 */
function serverTiming({ queueMs, stream, legs }: ReceiptDraft): string {
  const part = (name: string, of: (leg: LegDraft) => number): string => {
    const ms = legs.reduce((longest, leg) => (leg.error === "" ? Math.max(longest, of(leg)) : longest), 0);
    return ms > 0 ? `, ${name};dur=${ms.toFixed(1)}` : "";
  };
  const reserve = part("reserve", ({ reserveMs }) => reserveMs);
  const prefill = part("prefill", ({ prefillMs }) => prefillMs);
  // The first token of a non-streaming response is not observed: the time after prefill is all of decode.
  const rest = part(stream ? "transfer" : "decode", ({ transferMs }) => transferMs);
  return `queue;dur=${queueMs.toFixed(1)}${reserve}${prefill}${rest}`;
}

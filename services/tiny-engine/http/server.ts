// vLLM's HTTP API over an engine: the routes, their answers, and the errors for unknown routes.
// In addition Tandem's own routes: /sim/kind to tell which engine this is, /kv/release to drop KV; and, only where asked
// for, /sim/state to inspect the engine and /sim/fault to inject faults.
import { randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { EngineCore } from "../engine-core.ts";
import { POISON, type FaultBoard } from "../faults.ts";
import { Answer, type AnswerOptions, type AnswerPlan } from "./answer.ts";
import { parseObject, type JsonObject } from "./body.ts";
import { planChat } from "./chat.ts";
import { planCompletions } from "./completions.ts";
import { HttpError, readBody, send, sendError, sendJson } from "./exchange.ts";
import { detokenize, tokenize } from "./tokenize.ts";

/** uvicorn's: an idle connection is closed after this. */
const KEEP_ALIVE_MS = 5_000;

export interface ServerOptions extends AnswerOptions {
  readonly faults: FaultBoard;
  /** Routes beside vLLM's. Null: not one of them. */
  readonly admin: (
    method: string,
    path: string,
    body: string,
  ) => { readonly status: number; readonly json: string } | null;
}

type Handler = (req: IncomingMessage, res: ServerResponse) => void | Promise<void>;
type Planner = (engine: EngineCore, body: JsonObject, headerId: string | null) => AnswerPlan;

export function createEngineServer(options: ServerOptions): Server {
  const { engine, faults, onOutcome } = options;
  const startedSeconds = Math.floor(Date.now() / 1000);

  const generate =
    (plan: Planner): Handler =>
    async (req, res) => {
      const text = await readBody(req);
      const body = parseObject(text, req.headers["content-type"]);
      if (faults.has("poison") && text.includes(POISON)) {
        onOutcome("refused");
        sendError(res, new HttpError(500, "InternalServerError", "a template error"));
        return;
      }
      const suffered = faults.takeForRequest();
      if (suffered !== null && suffered.refuseStatus !== null) {
        onOutcome("refused");
        sendError(
          res,
          new HttpError(suffered.refuseStatus, "ServiceUnavailableError", 'refused by the fault "refuse"'),
        );
        return;
      }
      let planned: AnswerPlan;
      try {
        planned = plan(engine, body, headerId(req));
      } catch (error) {
        onOutcome("refused");
        throw error;
      }
      new Answer(options, res, planned, suffered).start();
    };
  const models = (): string => {
    const { name, root, maxLength } = engine.model;
    const permission = {
      id: `modelperm-${randomBytes(8).toString("hex")}`,
      object: "model_permission",
      created: Math.floor(Date.now() / 1000),
      allow_create_engine: false,
      allow_sampling: true,
      allow_logprobs: true,
      allow_search_indices: false,
      allow_view: true,
      allow_fine_tuning: false,
      organization: "*",
      group: null,
      is_blocking: false,
    };
    return JSON.stringify({
      object: "list",
      data: [
        {
          id: name,
          object: "model",
          created: startedSeconds,
          owned_by: "vllm",
          root,
          parent: null,
          max_model_len: maxLength,
          permission: [permission],
        },
      ],
    });
  };
  const health: Handler = (_, res) => send(res, engine.alive ? 200 : 503, "", null);
  const fixed =
    (json: () => string): Handler =>
    (_, res) =>
      sendJson(res, 200, json());
  const routes: Readonly<Record<string, Readonly<Record<string, Handler>>>> = {
    "/v1/completions": { POST: generate(planCompletions) },
    "/v1/chat/completions": { POST: generate(planChat) },
    "/v1/models": { GET: fixed(models) },
    "/tokenize": { POST: async (req, res) => sendJson(res, 200, tokenize(engine, await readObject(req))) },
    "/detokenize": { POST: async (req, res) => sendJson(res, 200, detokenize(engine, await readObject(req))) },
    "/health": { GET: health },
    "/ping": { GET: health, POST: health },
    "/version": { GET: fixed(() => JSON.stringify({ version: engine.model.version })) },
    "/load": { GET: fixed(() => JSON.stringify({ server_load: engine.runningCount + engine.waitingCount })) },
    "/kv_event_sources": { GET: fixed(() => "{}") },
    "/metrics": { GET: (_, res) => send(res, 200, engine.metrics.text(), "text/plain; version=1.0.0; charset=utf-8") },
  };

  const serve = async (req: IncomingMessage, res: ServerResponse): Promise<void> => {
    const method = req.method ?? "GET";
    const path = (req.url ?? "/").split("?")[0]!;
    const methods = routes[path];
    if (methods === undefined) {
      const answer = options.admin(method, path, method === "POST" ? await readBody(req) : "");
      if (answer === null) sendJson(res, 404, '{"detail":"Not Found"}');
      else sendJson(res, answer.status, answer.json);
      return;
    }
    const handler = methods[method];
    if (handler === undefined) {
      sendJson(res, 405, '{"detail":"Method Not Allowed"}', [["allow", Object.keys(methods).join(", ")]]);
      return;
    }
    await handler(req, res);
  };

  const server = createServer((req, res) => {
    serve(req, res).catch((error: unknown) => {
      // The client left while it was sending, so no answer is possible.
      if (!res.headersSent && !res.destroyed) sendError(res, error);
    });
  });
  server.keepAliveTimeout = KEEP_ALIVE_MS;
  // A response may take longer than Node's five minutes; receiving a request may not.
  server.requestTimeout = 60_000;
  return server;
}

async function readObject(req: IncomingMessage): Promise<JsonObject> {
  return parseObject(await readBody(req), req.headers["content-type"]);
}

function headerId(req: IncomingMessage): string | null {
  const id = req.headers["x-request-id"];
  return typeof id === "string" && id !== "" ? id : null;
}

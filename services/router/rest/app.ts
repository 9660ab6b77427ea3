// All HTTP routes of the router, as one table. Express routes all of them; the two hot routes have a
// router of their own, because an Express app gives request and response new prototypes, and that alone costs a fifth
// more per token (Node 20: 37-48 us a token against 31-35).
import type { IncomingMessage, ServerResponse } from "node:http";
import express, { type NextFunction, type Request, type Response } from "express";
import { ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { Pool } from "../pool/pool.ts";
import type { RouterConfig } from "../config.ts";
import { ANSWER_HEADERS } from "../serving/headers.ts";
import type { Serving } from "../serving/serving.ts";
import { restAccess, type AccessSettings } from "./access.ts";
import { completionsHandler } from "./completions.ts";
import { writeError } from "./errors.ts";
import { modelList, modelOf, readinessOf } from "./models.ts";
import { page, PAGE_HEADERS } from "./page.ts";
import { bodyBudget } from "./read-body.ts";

export type Middleware = (req: IncomingMessage, res: ServerResponse, next: () => void) => void;

export interface RestOptions
  extends AccessSettings,
    Pick<RouterConfig["rest"], "bodyLimitBytes" | "bodyTotalBytes" | "bufferBytes" | "stallMs"> {
  readonly serving: Serving;
  readonly pool: Pick<Pool, "view">;
  readonly metrics: Metrics;
  readonly log: Log;
  /** RouterService over Connect, gRPC-Web and JSON. */
  readonly routerService: Middleware;
  /** host:port of the gRPC server, for the page. */
  readonly grpcAddress: string;
}

export interface Route {
  readonly method: "GET" | "POST";
  readonly help: string;
}

/** Every path. docs/api.md is made from this. */
export const ROUTES = {
  "/v1/chat/completions": { method: "POST", help: "A chat completion, streaming or not." },
  "/v1/completions": { method: "POST", help: "A completion of one or more prompts, streaming or not." },
  "/v1/models": {
    method: "GET",
    help: 'The models that are registered, with `max_model_len`, and `"ready": false` where one can\'t be served now.',
  },
  "/v1/models/{id}": { method: "GET", help: "One of them. Slashes in the name may be escaped or not." },
  "/health": { method: "GET", help: "200 while the process runs. The same as `/livez`." },
  "/livez": { method: "GET", help: "200 while the process runs." },
  "/ready": { method: "GET", help: "The same as `/readyz`." },
  "/readyz": {
    method: "GET",
    help:
      "200 where at least one model can be served, else 503 and `reason`. `not_ready` has what other models lack; `self_doubt` is there while most instances are silent together. " +
      "Where `/` needs the key, none of these is told.",
  },
  "/metrics": {
    method: "GET",
    help: "[Metrics](metrics.md) in Prometheus' text format. Needs the key where `/` does.",
  },
  "/": {
    method: "GET",
    help: "A page for people: models, instances, lines to paste. Needs the API key, if there is one and `rest.listen` is beyond loopback.",
  },
} as const satisfies Record<string, Route>;

type GetPath = {
  [P in keyof typeof ROUTES]: (typeof ROUTES)[P]["method"] extends "GET" ? P : never;
}[keyof typeof ROUTES];

const METHODS = new Map(Object.entries(ROUTES).map(([path, { method }]: [string, Route]) => [path, method]));

/** RouterService has its own secret. */
const ADMIN_PATHS = "/tandem.router.";

export function restHandler(o: RestOptions): (req: IncomingMessage, res: ServerResponse) => void {
  const { serving, pool, log } = o;
  const access = restAccess(o, log);
  const openShare = bodyBudget(o.bodyTotalBytes, () => serving.metrics.notAdmitted("body_memory"));
  const hot = express.Router();
  for (const path of ["/v1/chat/completions", "/v1/completions"] as const)
    hot.post(path, completionsHandler(path, { ...o, access, openShare }));

  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  app.use((req, res, next) => {
    // So that a load balancer's kept connections go elsewhere while we stop.
    if (serving.draining) res.setHeader("connection", "close");
    (req.path.startsWith(ADMIN_PATHS) ? access.adminHost : access.host)(req.headers);
    next();
  });
  app.use("/v1", (req, _res, next) => {
    access.key(req.headers);
    next();
  });
  const startedS = Math.floor(Date.now() / 1000);
  const live = (_req: Request, res: Response): void => void res.json({ status: "ok" });
  const ready = (_req: Request, res: Response): void => {
    const { lack, lacking } = readinessOf(pool.view, serving.strict);
    const reason = serving.draining ? "The server is stopping." : lack;
    const also = {
      ...(Object.keys(lacking).length === 0 ? {} : { not_ready: lacking }),
      ...(pool.view.doubtsItself
        ? { self_doubt: "Most instances are silent together. The router takes none out for it." }
        : {}),
    };
    if (reason === undefined) res.json({ status: "ready", ...(access.tellsAll ? also : {}) });
    else res.status(503).json({ status: "not ready", ...(access.tellsAll ? { reason, ...also } : {}) });
  };
  const got: Record<GetPath, (req: Request, res: Response) => void | Promise<void>> = {
    "/v1/models": (_req, res) => void res.json(modelList(pool.view, startedS)),
    // Names of models hold slashes, which SDKs escape or not.
    "/v1/models/{id}"(req, res) {
      const id = req.params["id"] as unknown as string[];
      res.json(modelOf(pool.view, id.join("/"), startedS));
    },
    "/health": live,
    "/livez": live,
    "/ready": ready,
    "/readyz": ready,
    async "/metrics"(req, res) {
      access.inside(req.headers);
      res.setHeader("content-type", o.metrics.contentType);
      res.end(await o.metrics.text());
    },
    "/"(req, res) {
      access.inside(req.headers);
      const addresses = { restUrl: `${req.protocol}://${addressOf(req)}`, grpcAddress: o.grpcAddress };
      const { strict } = serving;
      res.set(PAGE_HEADERS).end(page({ view: pool.view, strict, keyed: o.apiKey !== "", ...addresses }));
    },
  };
  for (const [path, handler] of Object.entries(got)) app.get(path.replace("{id}", "*id"), handler);
  app.use(o.routerService);
  app.use((req: Request) => {
    throw notServed(req);
  });
  app.use((error: unknown, _req: Request, res: Response, _next: NextFunction) => {
    const known = asClientError(error);
    if (!(known instanceof ServiceError)) log.error("request failed", { error });
    writeError(res, known);
  });

  const onHot = hot as unknown as Middleware;
  return (req, res) => onHot(req, res, () => (app as unknown as Middleware)(req, res, () => {}));
}

/** Where the reader of the page got here, which is right behind forwarded ports too. */
function addressOf(req: Request): string {
  const host = req.headers.host ?? "";
  if (/^(\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(:\d{1,5})?$/.test(host)) return host;
  return `127.0.0.1:${req.socket.localPort ?? 80}`;
}

function notServed(req: Request): ServiceError {
  const path = req.path.length > 100 ? `${req.path.slice(0, 100)}…` : req.path;
  const known = METHODS.get(path) ?? (path.startsWith("/v1/models/") ? "GET" : undefined);
  if (known !== undefined) {
    req.res?.setHeader(ANSWER_HEADERS.allow.name, known === "GET" ? "GET, HEAD" : known);
    return new ServiceError("method_not_allowed", `${req.method} is not allowed on ${path}: use ${known}.`);
  }
  const there = [...METHODS].map(([name, method]) => `${method} ${name}`);
  return new ServiceError("not_found", `There is no ${path} here. There are: ${there.join(", ")}.`);
}

/** Express reports a path that can't be decoded as an error with a status. */
function asClientError(error: unknown): unknown {
  const status = (error as { status?: unknown } | null)?.status;
  if (error instanceof ServiceError || typeof status !== "number" || status < 400 || status > 499) return error;
  return new ServiceError("invalid_request", "The request's path can't be read.", { cause: error });
}

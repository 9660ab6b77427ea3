// Everything that the router answers over HTTP, as one table. Express routes all of it; the two hot routes stand on a
// router of their own, because an Express app gives request and response new prototypes, and that alone costs a fifth
// more per token (Node 20: 37-48 us a token against 31-35).
import type { IncomingMessage, ServerResponse } from "node:http";
import express, { type NextFunction, type Request, type Response } from "express";
import { ServiceError } from "../../common/errors.ts";
import type { Log } from "../../common/log.ts";
import type { Metrics } from "../../common/metrics.ts";
import type { Pool } from "../pool/pool.ts";
import { authorizer } from "./authorize.ts";
import { completionsHandler, type CompletionsOptions } from "./completions.ts";
import type { HostChecks } from "./host-check.ts";
import { modelList, modelOf } from "./models.ts";
import { page, PAGE_HEADERS } from "./page.ts";
import { readinessOf } from "../serving/readiness.ts";
import { writeError } from "./stream-answer.ts";

export type Middleware = (req: IncomingMessage, res: ServerResponse, next: () => void) => void;

export interface RestOptions extends Omit<CompletionsOptions, "metrics" | "checkHost"> {
  readonly pool: Pool;
  readonly metrics: Metrics;
  readonly servingMetrics: CompletionsOptions["metrics"];
  readonly log: Log;
  /** RouterService over Connect, gRPC-Web and JSON. */
  readonly routerService: Middleware;
  /** host:port of the gRPC server, for the page. */
  readonly grpcAddress: string;
  readonly checkHost: HostChecks;
}

/** Paths and their methods, as an error names them. */
const PATHS: Readonly<Record<string, "GET" | "POST">> = {
  "/v1/chat/completions": "POST",
  "/v1/completions": "POST",
  "/v1/models": "GET",
  "/v1/models/{id}": "GET",
  "/health": "GET",
  "/livez": "GET",
  "/ready": "GET",
  "/readyz": "GET",
  "/metrics": "GET",
  "/": "GET",
};

/** RouterService has its own secret. */
const ADMIN_PATHS = "/tandem.router.";

export function restHandler(o: RestOptions): (req: IncomingMessage, res: ServerResponse) => void {
  const completions = { ...o, metrics: o.servingMetrics, checkHost: o.checkHost.rest };
  const hot = express.Router();
  hot.post("/v1/chat/completions", completionsHandler("/v1/chat/completions", completions));
  hot.post("/v1/completions", completionsHandler("/v1/completions", completions));

  const app = express();
  app.disable("x-powered-by");
  app.disable("etag");
  app.use((_req, res, next) => {
    // So that a load balancer's kept connections go elsewhere while we stop.
    if (o.serving.draining) res.setHeader("connection", "close");
    next();
  });
  app.use((req, _res, next) => {
    (req.path.startsWith(ADMIN_PATHS) ? o.checkHost.admin : o.checkHost.rest)(req.headers.host);
    next();
  });
  const authorize = authorizer(o.apiKey);
  app.use("/v1", (req, _res, next) => {
    authorize(req.headers.authorization);
    next();
  });
  const startedS = Math.floor(Date.now() / 1000);
  app.get("/v1/models", (_req, res) => void res.json(modelList(o.pool.view, startedS)));
  // Names of models hold slashes, which SDKs escape or not.
  app.get("/v1/models/*id", (req, res) => {
    const id = req.params["id"] as unknown as string[];
    res.json(modelOf(o.pool.view, id.join("/"), startedS));
  });
  app.get(["/health", "/livez"], (_req, res) => void res.json({ status: "ok" }));
  app.get(["/ready", "/readyz"], (_req, res) => {
    const { lack, models } = readinessOf(o.pool.view, o.serving.strict);
    const reason = o.serving.draining ? "The server is stopping." : lack;
    const lacking = Object.fromEntries([...models].filter(([, text]) => text !== ""));
    const also = Object.keys(lacking).length === 0 ? {} : { not_ready: lacking };
    if (reason === undefined) res.json({ status: "ready", ...also });
    else res.status(503).json({ status: "not ready", reason, ...also });
  });
  app.get("/metrics", async (_req, res) => {
    res.setHeader("content-type", o.metrics.contentType);
    res.end(await o.metrics.text());
  });
  app.get("/", (req, res) => {
    const { view } = o.pool;
    const readiness = readinessOf(view, o.serving.strict);
    const addresses = { restAddress: addressOf(req), grpcAddress: o.grpcAddress };
    res.set(PAGE_HEADERS).end(page({ view, readiness, keyed: o.apiKey !== "", ...addresses }));
  });
  app.use(o.routerService);
  app.use((req: Request) => {
    throw notServed(req);
  });
  app.use((error: unknown, _req: Request, res: Response, _next: NextFunction) => {
    const known = asClientError(error);
    if (!(known instanceof ServiceError)) o.log.error("request failed", { error });
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
  const known = PATHS[path] ?? (path.startsWith("/v1/models/") ? "GET" : undefined);
  if (known !== undefined) {
    req.res?.setHeader("allow", known === "GET" ? "GET, HEAD" : known);
    return new ServiceError("method_not_allowed", `${req.method} is not allowed on ${path}: use ${known}.`);
  }
  const there = Object.entries(PATHS).map(([name, method]) => `${method} ${name}`);
  return new ServiceError("not_found", `There is no ${path} here. There are: ${there.join(", ")}.`);
}

/** Express reports a path that can't be decoded as an error with a status. */
function asClientError(error: unknown): unknown {
  const status = (error as { status?: unknown } | null)?.status;
  if (error instanceof ServiceError || typeof status !== "number" || status < 400 || status > 499) return error;
  return new ServiceError("invalid_request", "The request's path can't be read.", { cause: error });
}

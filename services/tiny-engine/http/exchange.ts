// One HTTP exchange in uvicorn's handwriting: the headers and their order, and the error bodies that
// vLLM's FastAPI application sends. Bodies are read whole, up to a limit; vLLM has none.
import { STATUS_CODES, type IncomingMessage, type ServerResponse } from "node:http";
import type { EngineFailure } from "../engine.ts";

const BODY_LIMIT_BYTES = 64 * 1024 * 1024;

/** Thrown for a request that cannot be served; becomes vLLM's error body. */
export class HttpError extends Error implements EngineFailure {
  readonly status: number;
  readonly type: string;
  readonly param: string | null;

  constructor(status: number, type: string, message: string, param: string | null = null) {
    super(message);
    this.status = status;
    this.type = type;
    this.param = param;
  }
}

/** A request that vLLM itself refuses. */
export function badRequest(message: string, param: string | null = null): HttpError {
  return new HttpError(400, "BadRequestError", message, param);
}

/** Like badRequest, with the suffix of vLLM's own validation errors. `value` as Python prints it. */
export function badValue(message: string, param: string, value?: string): HttpError {
  return badRequest(`${message} (parameter=${param}${value === undefined ? "" : `, value=${value}`})`, param);
}

export function errorBody(error: EngineFailure): string {
  return JSON.stringify({
    error: { message: error.message, type: error.type, param: error.param, code: error.status },
  });
}

/** The error body as data of an SSE event, which Python's own JSON writer prints with spaces. */
export function errorEvent({ message, type, param, status }: EngineFailure): string {
  const fields = `"message": ${JSON.stringify(message)}, "type": ${JSON.stringify(type)}, "param": ${JSON.stringify(param)}, "code": ${status}`;
  return `data: {"error": {${fields}}}\n\n`;
}

export type Headers = readonly (readonly [string, string])[];

/** @param before Headers that vLLM puts before the length. */
export function send(
  res: ServerResponse,
  status: number,
  body: string,
  contentType: string | null,
  before: Headers = [],
): void {
  const bytes = Buffer.from(body, "utf8");
  const type: Headers = contentType === null ? [] : [["content-type", contentType]];
  head(res, status, [...before, ["content-length", String(bytes.length)], ...type]);
  res.end(bytes);
}

export function sendJson(res: ServerResponse, status: number, json: string, before: Headers = []): void {
  send(res, status, json, "application/json", before);
}

export function sendError(res: ServerResponse, error: unknown): void {
  const known = error instanceof HttpError ? error : new HttpError(500, "InternalServerError", "Internal server error");
  sendJson(res, known.status, errorBody(known));
}

/**
 * Status line and headers; `connection` and `keep-alive`, which uvicorn does not send, are kept out.
 *
 * @param framing Headers that uvicorn itself adds, behind the application's.
 */
export function head(res: ServerResponse, status: number, headers: Headers, framing: Headers = []): void {
  res.sendDate = false;
  res.removeHeader("connection");
  const all: Headers = [["date", httpDate()], ["server", "uvicorn"], ...headers, ["vary", "Origin"], ...framing];
  res.writeHead(status, STATUS_CODES[status] ?? "", all.flat());
}

let dateSecond = 0;
let dateText = "";

function httpDate(): string {
  const second = Math.floor(Date.now() / 1000);
  if (second !== dateSecond) {
    dateSecond = second;
    dateText = new Date(second * 1000).toUTCString();
  }
  return dateText;
}

/** @throws HttpError if the body is too long; rejects if the client leaves. */
export async function readBody(req: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of req as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > BODY_LIMIT_BYTES)
      throw new HttpError(413, "BadRequestError", `the body is longer than ${BODY_LIMIT_BYTES} bytes`);
    chunks.push(chunk);
  }
  return (chunks.length === 1 ? chunks[0]! : Buffer.concat(chunks)).toString("utf8");
}

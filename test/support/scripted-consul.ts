// A Consul that answers by a script: what a real one does rarely, and what is asked of it can be looked at.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

export interface Asked {
  readonly method: string;
  readonly path: string;
  readonly query: URLSearchParams;
  readonly request: IncomingMessage;
}

export type Answer = (response: ServerResponse, asked: Asked) => void;

export const json =
  (index: number | string, body: unknown, headers: Record<string, string> = {}): Answer =>
  (response) => {
    response.writeHead(200, { "content-type": "application/json", "x-consul-index": String(index), ...headers });
    response.end(JSON.stringify(body));
  };

export const refuse =
  (status: number, text: string): Answer =>
  (response) =>
    void response.writeHead(status, { "content-type": "text/plain" }).end(text);

/** Holds the question open, as Consul does while nothing changes. */
export const hold: Answer = () => {};

export interface ScriptedConsul {
  readonly address: string;
  readonly asked: Asked[];
  close(): void;
}

/**
 * Answers each question with the next of `script`; the last one again and again.
 *
 * @param listen A port of 127.0.0.1, a host, or the path of a socket.
 */
export async function scriptedConsul(
  script: readonly Answer[],
  listen: { host: string } | { path: string } = { host: "127.0.0.1" },
): Promise<ScriptedConsul> {
  const asked: Asked[] = [];
  const server = createServer((request: IncomingMessage, response) => {
    const { pathname, searchParams } = new URL(request.url!, "http://x");
    const one = { method: request.method!, path: decodeURIComponent(pathname), query: searchParams, request };
    asked.push(one);
    script[Math.min(asked.length, script.length) - 1]!(response, one);
  });
  await new Promise<void>((resolve, reject) => {
    server.once("error", reject);
    server.listen({ port: 0, ...listen }, resolve);
  });
  const at = server.address() as AddressInfo | string;
  return {
    address:
      typeof at === "string" ? `unix://${at}` : `${at.family === "IPv6" ? `[${at.address}]` : at.address}:${at.port}`,
    asked,
    close: () => {
      server.close();
      server.closeAllConnections();
    },
  };
}

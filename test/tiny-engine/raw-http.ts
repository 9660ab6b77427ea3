// HTTP as bytes: what a test needs that compares headers, their order and the chunk framing.
import { connect } from "node:net";

export interface RawResponse {
  readonly statusLine: string;
  /** In order, names as they were sent. */
  readonly headers: readonly (readonly [string, string])[];
  /** The body; of a chunked one, the payload of each chunk. */
  readonly chunks: readonly string[];
}

export interface RawRequest {
  readonly method: string;
  readonly path: string;
  readonly headers: readonly string[];
  readonly body: string | null;
}

/** Sends one request as curl would and reads its answer to the end. Rejects when the connection ends before. */
export async function exchange(url: string, request: RawRequest): Promise<RawResponse> {
  const { hostname, port, host } = new URL(url);
  const socket = connect(Number(port), hostname);
  const length = request.body === null ? [] : [`Content-Length: ${Buffer.byteLength(request.body)}`];
  const lines = [
    `${request.method} ${request.path} HTTP/1.1`,
    `Host: ${host}`,
    "User-Agent: curl",
    "Accept: */*",
    ...request.headers,
    ...length,
  ];
  socket.write(`${lines.join("\r\n")}\r\n\r\n${request.body ?? ""}`);
  let bytes = Buffer.alloc(0);
  try {
    for await (const piece of socket as AsyncIterable<Buffer>) {
      bytes = Buffer.concat([bytes, piece]);
      const response = parseResponse(bytes, request.method);
      if (response !== null) return response;
    }
  } finally {
    socket.destroy();
  }
  throw new Error(`the connection ended after ${bytes.length} bytes: ${bytes.toString("utf8").slice(0, 300)}`);
}

/** Null while it is not complete. */
export function parseResponse(bytes: Buffer, method: string): RawResponse | null {
  const headEnd = bytes.indexOf("\r\n\r\n");
  if (headEnd === -1) return null;
  const [statusLine, ...lines] = bytes.subarray(0, headEnd).toString("latin1").split("\r\n");
  const headers = lines.map((line) => {
    const colon = line.indexOf(":");
    return [line.slice(0, colon), line.slice(colon + 1).trim()] as const;
  });
  const value = (name: string): string | undefined => headers.find(([key]) => key.toLowerCase() === name)?.[1];
  const body = bytes.subarray(headEnd + 4);
  const chunks =
    value("transfer-encoding") === "chunked"
      ? parseChunks(body)
      : method === "HEAD"
        ? []
        : body.length >= Number(value("content-length") ?? 0)
          ? [body.toString("utf8")]
          : null;
  return chunks === null ? null : { statusLine: statusLine!, headers, chunks };
}

function parseChunks(body: Buffer): string[] | null {
  const chunks: string[] = [];
  for (let at = 0; ; ) {
    const lineEnd = body.indexOf("\r\n", at);
    if (lineEnd === -1) return null;
    const size = Number.parseInt(body.toString("latin1", at, lineEnd), 16);
    const end = lineEnd + 2 + size;
    if (body.length < end + 2) return null;
    if (body.toString("latin1", end, end + 2) !== "\r\n")
      throw new Error(`a chunk of ${size} bytes does not end where it says`);
    if (size === 0) return chunks;
    chunks.push(body.toString("utf8", lineEnd + 2, end));
    at = end + 2;
  }
}

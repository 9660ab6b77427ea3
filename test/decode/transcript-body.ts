// Bodies of vLLM's recorded answers.
import { readFileSync } from "node:fs";

const FOLDER = new URL("../fixtures/vllm-transcripts/", import.meta.url);

/** Bytes of a recorded answer's body, its chunked framing taken off. */
export function bodyOf(name: string): Buffer {
  const raw = readFileSync(new URL(name, FOLDER));
  const headEnd = raw.indexOf("\r\n\r\n") + 4;
  if (!/transfer-encoding: chunked/i.test(raw.toString("latin1", 0, headEnd))) return raw.subarray(headEnd);
  const chunks: Buffer[] = [];
  for (let at = headEnd; ; ) {
    const lineEnd = raw.indexOf("\r\n", at);
    const size = Number.parseInt(raw.toString("latin1", at, lineEnd), 16);
    if (!(size > 0)) return Buffer.concat(chunks);
    chunks.push(raw.subarray(lineEnd + 2, lineEnd + 2 + size));
    at = lineEnd + 2 + size + 2;
  }
}

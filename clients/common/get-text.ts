// One GET with node:http. The first `fetch` of a process costs 0.15 s of CPU, this 0.03 s: health checks of containers
// start a process every few seconds.
import { once } from "node:events";
import { get, type IncomingMessage } from "node:http";
import { text } from "node:stream/consumers";

/** @param ca PEM of the authorities that the server's certificate may come from, for an https URL. @throws Error of the connection; an AbortError once `signal` aborts. */
export async function getText(
  url: string,
  signal?: AbortSignal,
  ca?: string,
): Promise<{ status: number; text: string }> {
  const options = { agent: false as const, signal, ...(ca === undefined ? {} : { ca }) };
  const call = url.startsWith("https:") ? (await import("node:https")).get(url, options) : get(url, options);
  const [response] = (await once(call, "response")) as [IncomingMessage];
  call.on("error", () => {}); // The body reports it too.
  return { status: response.statusCode ?? 0, text: await text(response) };
}

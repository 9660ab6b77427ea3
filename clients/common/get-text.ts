// One GET with node:http. The first `fetch` of a process costs 0.15 s of CPU, this 0.03 s: health checks of containers
// start a process every few seconds.
import { once } from "node:events";
import { get, type IncomingMessage } from "node:http";
import { text } from "node:stream/consumers";

/** @throws Error of the connection; an AbortError once `signal` aborts. */
export async function getText(url: string, signal?: AbortSignal): Promise<{ status: number; text: string }> {
  const call = get(url, { agent: false, signal });
  const [response] = (await once(call, "response")) as [IncomingMessage];
  call.on("error", () => {}); // The body reports it too.
  return { status: response.statusCode ?? 0, text: await text(response) };
}

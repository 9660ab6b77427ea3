// Questions to an engine wherever it listens: at a URL, or at a Unix socket as those that Tandem starts.
import { EngineHttp } from "../../services/engine/http.ts";

/** @param url http://host:port, or unix:/path. */
export async function askEngine(
  url: string,
  path: string,
  o: { readonly method?: "GET" | "POST"; readonly body?: string } = {},
): Promise<{ readonly status: number; readonly text: string }> {
  const http = new EngineHttp({ url });
  try {
    const call = { method: o.method ?? "GET", path, body: o.body === undefined ? undefined : Buffer.from(o.body) };
    const { status, body } = await http.fetch(call);
    return { status, text: body.toString() };
  } finally {
    http.close(new Error("answered"));
  }
}

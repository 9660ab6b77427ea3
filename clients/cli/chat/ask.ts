// One turn: the conversation goes out, the answer comes back as it is written.

export interface Message {
  readonly role: "system" | "user" | "assistant";
  readonly content: string;
}

export interface AskOptions {
  readonly url: string;
  readonly apiKey: string;
  readonly model: string;
  readonly messages: readonly Message[];
  /** Sampling fields of the body. */
  readonly sampling: Readonly<Record<string, number>>;
  /** Ends the answer; what came until then is kept. */
  readonly stop: AbortSignal;
  onText(text: string): void;
}

export interface Turn {
  readonly requestId: string;
  readonly text: string;
  /** From the send to the first text, in milliseconds. NaN where none came. */
  readonly ttftMs: number;
  /** From the first text to the last, in milliseconds. */
  readonly writingMs: number;
  /** NaN where the answer was stopped. */
  readonly tokens: number;
  readonly stopped: boolean;
}

/** The router refused, or is not there. The message is for people. */
export class AskError extends Error {}

interface Chunk {
  readonly choices?: readonly { readonly delta?: { readonly content?: string | null } }[];
  readonly usage?: { readonly completion_tokens?: number } | null;
  readonly error?: { readonly message?: string };
}

/** @throws AskError */
export async function ask(options: AskOptions): Promise<Turn> {
  const { url, apiKey, model, messages, sampling, stop, onText } = options;
  const sentMs = performance.now();
  let firstMs = Number.NaN;
  let lastMs = Number.NaN;
  let text = "";
  let tokens = Number.NaN;
  let requestId = "";
  const takeEvent = (data: string): void => {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data) as Chunk;
    if (chunk.error !== undefined) throw new AskError(chunk.error.message ?? "the answer broke off");
    tokens = chunk.usage?.completion_tokens ?? tokens;
    const piece = chunk.choices?.[0]?.delta?.content ?? "";
    if (piece === "") return;
    lastMs = performance.now();
    if (text === "") firstMs = lastMs;
    text += piece;
    onText(piece);
  };
  try {
    const response = await fetch(`${url}/v1/chat/completions`, {
      method: "POST",
      headers: { "content-type": "application/json", ...(apiKey === "" ? {} : { authorization: `Bearer ${apiKey}` }) },
      body: JSON.stringify({ model, messages, stream: true, stream_options: { include_usage: true }, ...sampling }),
      signal: stop,
    });
    requestId = response.headers.get("x-request-id") ?? "";
    if (response.status !== 200) throw new AskError(await refusal(response));
    let rest = "";
    const decoder = new TextDecoder();
    for await (const bytes of response.body!) {
      rest += decoder.decode(bytes as Uint8Array, { stream: true });
      const events = rest.split("\n\n");
      rest = events.pop()!;
      for (const event of events) if (event.startsWith("data: ")) takeEvent(event.slice("data: ".length));
    }
  } catch (error) {
    if (!stop.aborted) throw error instanceof AskError ? error : new AskError(unreachable(url, error as Error));
  }
  return { requestId, text, tokens, ttftMs: firstMs - sentMs, writingMs: lastMs - firstMs, stopped: stop.aborted };
}

async function refusal(response: Response): Promise<string> {
  const body = await response.text();
  try {
    return (JSON.parse(body) as { error: { message: string } }).error.message;
  } catch {
    return `status ${response.status}: ${body.slice(0, 300)}`;
  }
}

/** Of fetch's errors the cause alone says anything. */
export function unreachable(url: string, error: Error): string {
  const { code } = (error.cause ?? {}) as { code?: string };
  return code === "ECONNREFUSED"
    ? `Nothing listens at ${url}. Start Tandem with \`tandem up\`, or name a router with --router URL.`
    : `The connection to ${url} broke: ${error.cause instanceof Error ? error.cause.message : error.message}`;
}

// Streams of completions, one after the other on each of several clients, until told to stop.
export interface Sent {
  readonly startedMs: number;
  readonly endedMs: number;
  /** Undefined: a whole answer came. */
  readonly error: string | undefined;
  /** The header that says what was done otherwise than planned. */
  readonly degraded: string;
}

export interface SteadyLoad {
  /** Requests that have ended. Times are Unix milliseconds. */
  readonly sent: readonly Sent[];
  readonly failed: readonly Sent[];
  /** No client starts another request. Resolves when the last has ended. */
  stop(): Promise<void>;
}

export function steadyLoad(
  urls: readonly string[],
  o: { readonly clients: number; readonly tokens?: number; readonly model?: string },
): SteadyLoad {
  const sent: Sent[] = [];
  let over = false;
  const body = JSON.stringify({
    model: o.model ?? "tandem-sim",
    prompt: "Prefill and decode",
    max_tokens: o.tokens ?? 20,
    stream: true,
    ignore_eos: true,
  });

  async function one(url: string): Promise<void> {
    const startedMs = Date.now();
    let error: string | undefined;
    let degraded = "";
    try {
      const answer = await fetch(`${url}/v1/completions`, {
        method: "POST",
        headers: { "content-type": "application/json" },
        body,
      });
      degraded = answer.headers.get("x-tandem-degraded") ?? "";
      const text = await answer.text();
      if (answer.status !== 200) error = `${answer.status} ${text.slice(0, 300)}`;
      else if (!text.endsWith("data: [DONE]\n\n")) error = `a stream without its end: ${text.slice(-300)}`;
      else if (text.includes('"error"')) error = text.slice(-300);
    } catch (thrown) {
      error = String((thrown as Error).cause ?? thrown);
    }
    sent.push({ startedMs, endedMs: Date.now(), error, degraded });
  }

  const clients = Array.from({ length: o.clients }, async (_, index) => {
    while (!over) await one(urls[index % urls.length]!);
  });
  return {
    sent,
    get failed() {
      return sent.filter(({ error }) => error !== undefined);
    },
    async stop() {
      over = true;
      await Promise.all(clients);
    },
  };
}

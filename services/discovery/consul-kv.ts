// Settings under one prefix of Consul's KV store, and every change of them. All keys of one answer belong together.
import type { Log } from "../common/log.ts";
import type { ConsulClient, ConsulError } from "./consul-http.ts";
import { watchConsul } from "./consul-watch.ts";
import type { Watch } from "./registry.ts";

export interface ConsulKvOptions {
  readonly client: ConsulClient;
  /** Such as `tandem/config`; the keys below it are settings. */
  readonly prefix: string;
  readonly log: Log;
  onHealth(watch: string, error: ConsulError | undefined): void;
}

/** @param onChange Gets texts by key, without the prefix. Not called while Consul is away. */
export function watchConsulKv(o: ConsulKvOptions, onChange: (texts: ReadonlyMap<string, string>) => void): Watch {
  const stop = new AbortController();
  const folder = `${o.prefix.replace(/^\/+|\/+$/g, "")}/`;
  const watch = watchConsul({
    client: o.client,
    path: `/v1/kv/${folder.split("/").map(encodeURIComponent).join("/")}`,
    query: { recurse: "true" },
    policy: `key_prefix "${folder}" { policy = "read" }`,
    onChange(answer) {
      const texts = new Map<string, string>();
      const items = answer.status === 404 ? [] : (answer.json() as readonly { Key: string; Value: string | null }[]);
      for (const { Key, Value } of items) {
        // The UI makes keys that end in a slash, for folders.
        if (Key.endsWith("/")) continue;
        texts.set(Key.slice(folder.length), Value === null ? "" : Buffer.from(Value, "base64").toString().trim());
      }
      onChange(texts);
    },
    onUp: () => o.onHealth("settings", undefined),
    onDown: (error) => o.onHealth("settings", error),
    stop: stop.signal,
  });
  return {
    async [Symbol.asyncDispose]() {
      stop.abort();
      await watch;
    },
  };
}
